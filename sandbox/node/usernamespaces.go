package node

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/cribox/cribox/sandbox/pause"
	"github.com/cribox/cribox/sandbox/userns"
)

// tryUserNamespace makes one and mounts images with its ids, out of sight. noTmpfs says why a tmpfs
// cannot be mounted with them.
func (n *Node) tryUserNamespace() (noTmpfs, err error) {
	if err := reachable(n.conf.State); err != nil {
		return nil, err
	}
	ids := userns.IDs{First: 1, Length: 1}
	ns, err := userns.New(pause.Binary(), ids, ids, true)
	if err != nil {
		return nil, err
	}
	noTmpfs = userns.CanMapTmpfs(ns.User)
	return noTmpfs, errors.Join(n.conf.CheckIDMap(ns.User), ns.Close())
}

// CheckUserNamespaces tells whether pods can have user namespaces on this machine; mount tries to
// mount images with the ids of one, and noTmpfs says why they can have no tmpfs in it. The error
// names what is missing. Nothing is left.
func CheckUserNamespaces(mount func(userNS *os.File) error) (noTmpfs, err error) {
	ids := userns.IDs{First: 1, Length: 1}
	ns, err := userns.New(pause.Binary(), ids, ids, true)
	if err != nil {
		return nil, err
	}
	noTmpfs = userns.CanMapTmpfs(ns.User)
	return noTmpfs, errors.Join(mount(ns.User), ns.Close())
}

// reachable says whether everybody can go to dir: root of a user namespace is nobody outside, and
// the OCI runtime looks for the root filesystem as that.
func reachable(dir string) error {
	for ; ; dir = filepath.Dir(dir) {
		info, err := os.Stat(dir)
		if err != nil {
			return err
		}
		if info.Mode().Perm()&0o001 == 0 {
			return fmt.Errorf("users other than root cannot enter the folder %s, which has mode %s; chmod o+x lets them",
				dir, info.Mode().Perm())
		}
		if dir == "/" {
			return nil
		}
	}
}
