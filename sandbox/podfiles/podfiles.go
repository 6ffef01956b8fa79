// Package podfiles makes the files of a pod in the state folder, and those of its containers there; it
// changes no record.
package podfiles

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/moby/sys/mountinfo"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/sandbox/layout"
	"github.com/cribox/cribox/sandbox/node"
	"github.com/cribox/cribox/sandbox/pins"
	"github.com/cribox/cribox/sandbox/selinux"
	"github.com/cribox/cribox/sandbox/spec"
	"github.com/cribox/cribox/sandbox/store"
	"github.com/cribox/cribox/sandbox/table"
	"github.com/cribox/cribox/sandbox/userns"
)

// Files makes the files of pods.
type Files struct{ Layout layout.Layout }

func hostIPC(c *runtimeapi.PodSandboxConfig) bool {
	return c.GetLinux().GetSecurityContext().GetNamespaceOptions().GetIpc() == runtimeapi.NamespaceMode_NODE
}

// etcFiles are the files that every container of a pod has in its /etc. Root in the pod may write to
// them.
var etcFiles = []string{"hosts", "hostname", "resolv.conf"}

// etcSize is the size up to which a pod's etcFiles can grow together, in addition to the size of the
// host's own files.
const etcSize = 1 << 20

// etcFile returns the path of one of etcFiles. They are in a small file system of the pod, so that a
// container that writes to one without end fills this and not the state folder. A pod of an earlier
// version has them directly in its folder.
func (f Files) etcFile(id, name string) string {
	old := f.Layout.PodFile(id, name)
	if _, err := os.Stat(old); err == nil {
		return old
	}
	return filepath.Join(f.Layout.PodFile(id, "etc"), name)
}

// mountEtc mounts the file system for etcFiles, unless it is mounted. It has no room for other files.
func mountEtc(dir string) error {
	size := int64(etcSize)
	for _, name := range []string{"/etc/hosts", "/etc/resolv.conf"} { // a pod in the host's network has a copy of them
		if info, err := os.Stat(name); err == nil {
			size += info.Size()
		}
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if mounted, err := mountinfo.Mounted(dir); err != nil || mounted {
		return err
	}
	options := fmt.Sprintf("mode=0700,size=%d,nr_inodes=%d", size, 2+2*len(etcFiles))
	if err := unix.Mount("cribox-etc", dir, "tmpfs", unix.MS_NOEXEC|unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
		return fmt.Errorf("mount %s: %w", dir, err)
	}
	return nil
}

// Make writes hostname and resolv.conf and mounts /dev/shm, which has shmSize bytes; existing mounts
// are kept. label is the SELinux label of them all. Make also makes the folder of the logs: the
// kubelet does this itself, but crictl does not.
func (f Files) Make(p *table.PodEntry, shmSize int64, label string) error {
	if dir := p.Config.GetLogDirectory(); dir != "" {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(f.Layout.StatePath("pods", p.ID), 0o700); err != nil {
		return err
	}
	if err := mountEtc(f.Layout.PodFile(p.ID, "etc")); err != nil {
		return err
	}
	name, err := podHostname(p.Config)
	if err != nil {
		return err
	}
	if err := f.writeEtc(p, "hostname", label, []byte(name+"\n")); err != nil {
		return err
	}
	resolv, err := resolvConf(p.Config.GetDnsConfig())
	if err != nil {
		return err
	}
	if err := f.writeEtc(p, "resolv.conf", label, resolv); err != nil {
		return err
	}
	if hostIPC(p.Config) {
		return nil
	}
	return mountShm(p.Config, f.Layout.PodFile(p.ID, "shm"), shmSize, label)
}

func podHostname(c *runtimeapi.PodSandboxConfig) (string, error) {
	if name := c.GetHostname(); name != "" {
		return name, nil
	}
	return os.Hostname()
}

// resolvConf returns what the pod asked for, or the host's own when it asked for nothing
// (PodSandboxConfig.dns_config).
func resolvConf(dns *runtimeapi.DNSConfig) ([]byte, error) {
	if dns == nil {
		b, err := os.ReadFile("/etc/resolv.conf")
		if errors.Is(err, os.ErrNotExist) {
			return nil, nil
		}
		return b, err
	}
	var b strings.Builder
	if s := spec.DNSWords(dns.GetSearches()); len(s) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(s, " "))
	}
	for _, s := range spec.DNSWords(dns.GetServers()) {
		fmt.Fprintf(&b, "nameserver %s\n", s)
	}
	if o := spec.DNSWords(dns.GetOptions()); len(o) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(o, " "))
	}
	return []byte(b.String()), nil
}

func mountShm(c *runtimeapi.PodSandboxConfig, dir string, size int64, label string) error {
	if err := os.MkdirAll(dir, 0o1777); err != nil {
		return err
	}
	if mounted, err := mountinfo.Mounted(dir); err != nil || mounted {
		return err
	}
	root := spec.RootOf(c)
	options := fmt.Sprintf("mode=1777,size=%d,uid=%d,gid=%d", size, root.UID, root.GID)
	options = selinux.MountOptions(options, label)
	err := unix.Mount("shm", dir, "tmpfs", unix.MS_NOEXEC|unix.MS_NOSUID|unix.MS_NODEV, options)
	if err != nil {
		return fmt.Errorf("mount %s: %w", dir, err)
	}
	return nil
}

// WriteHosts writes the pod's /etc/hosts: a copy of the host's for a pod in the host's network, else
// localhost and the pod itself.
func (f Files) WriteHosts(p *table.PodEntry, label string, ips []netip.Addr) error {
	if spec.HostNetwork(p.Config) {
		b, err := os.ReadFile("/etc/hosts")
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		return f.writeEtc(p, "hosts", label, b)
	}
	name, err := podHostname(p.Config)
	if err != nil {
		return err
	}
	var b strings.Builder
	b.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n")
	for _, ip := range ips {
		fmt.Fprintf(&b, "%s\t%s\n", ip, name)
	}
	return f.writeEtc(p, "hosts", label, []byte(b.String()))
}

// Remove removes all files, mounts and pins of a pod. It may be called at any time.
func (f Files) Remove(id string) error {
	for _, dir := range []string{f.Layout.PodFile(id, "shm"), f.Layout.PodFile(id, "etc")} {
		err := unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("unmount %s: %w", dir, err)
		}
	}
	if err := errors.Join(userns.Unpin(f.Layout.UserNS(id)), pins.Remove(f.Layout.StatePath("pods", id))); err != nil {
		return err
	}
	return os.RemoveAll(f.Layout.StatePath("pods", id))
}

// ForSpec returns what the spec of a pod, or of a container in it, is made of.
func (f Files) ForSpec(p *table.PodEntry, r *store.Pod) (spec.Pod, error) {
	name, err := podHostname(p.Config)
	if err != nil {
		return spec.Pod{}, err
	}
	s := spec.Pod{ID: p.ID, Config: p.Config, RuntimeHandler: r.Handler, NetNS: r.NetNS,
		Hostname: name, ShmPath: f.Layout.PodFile(p.ID, "shm"), HostsPath: f.etcFile(p.ID, "hosts"),
		HostnamePath: f.etcFile(p.ID, "hostname"), ResolvConfPath: f.etcFile(p.ID, "resolv.conf"),
		ProcessLabel: r.ProcessLabel, MountLabel: r.MountLabel}
	if hostIPC(p.Config) {
		s.ShmPath = ""
	}
	if _, _, ok := spec.UserNamespace(p.Config); ok {
		s.UserNS = f.Layout.UserNS(p.ID)
	}
	if r.PausePID != 0 {
		s.PauseNS = f.Layout.PauseNS(p.ID)
		return s, nil
	}
	profile, err := spec.PodSeccompPath(p.Config)
	if err != nil {
		return s, err
	}
	if s.SeccompProfile, err = node.ReadSeccomp(profile); err != nil {
		return s, err
	}
	return s, nil
}

// writeEtc writes one of etcFiles, which belongs to root in the pod.
func (f Files) writeEtc(p *table.PodEntry, name, label string, b []byte) error {
	path := f.etcFile(p.ID, name)
	root := spec.RootOf(p.Config)
	return errors.Join(os.WriteFile(path, b, 0o644), os.Lchown(path, root.UID, root.GID), selinux.SetLabel(path, label))
}

// SaveSpec writes the spec of a container for StartContainer and ExecSync into the folder of its pod.
func (f Files) SaveSpec(c *table.ContainerEntry, s *specs.Spec) error {
	dir := f.Layout.StatePath("pods", c.PodID, c.ID)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	whole, err := json.Marshal(s)
	if err != nil {
		return err
	}
	return replaceFile(filepath.Join(dir, "config.json"), whole) // an exec reads the old spec or the new one
}

// SavePodSpec writes the spec of a pod into its folder.
func (f Files) SavePodSpec(id string, spec []byte) error {
	return replaceFile(f.Layout.PodSpecPath(id), spec)
}

// replaceFile writes a file so that it has the old content or the new one, whenever it is read.
func replaceFile(path string, b []byte) error {
	if err := os.WriteFile(path+".new", b, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}
