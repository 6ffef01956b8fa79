package keyring

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/cribox/cribox/imageservice/program"
)

const (
	helperTime = 30 * time.Second // a helper may have to ask a cloud
	maxReply   = 64 << 10
)

var (
	helperName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]*$`)
	// noCredentials is what helpers print if they have nothing for a server. All of them use the
	// text of docker's library.
	noCredentials = []byte("credentials not found in native keychain")
)

// ask runs docker-credential-NAME for a server. It returns nil if the helper has nothing for it.
// Errors contain nothing that the helper printed, since that may be a secret.
func (k *Keyring) ask(ctx context.Context, name, server string) (*Entry, error) {
	path, err := k.program(name)
	if err != nil {
		return nil, err
	}
	server = strings.TrimSpace(server)
	out, err := program.Ask(ctx, program.Question{Path: path, Args: []string{"get"}, Input: []byte(server),
		Time: helperTime, Most: maxReply})
	from := fmt.Sprintf("%s for %s", filepath.Base(path), server)
	switch {
	case err != nil && bytes.Contains(out, noCredentials):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("ask for the credentials of %s: %w", server, err)
	}
	var reply struct{ Username, Secret string }
	if err := json.Unmarshal(out, &reply); err != nil || reply.Secret == "" {
		return nil, fmt.Errorf("the answer of %s has no credentials", from)
	}
	e := &Entry{Username: reply.Username, Password: reply.Secret, From: from}
	if reply.Username == "<token>" { // docker's mark of an identity token
		e.Username, e.Password, e.IdentityToken = "", "", reply.Secret
	}
	return e, nil
}

// program returns the absolute path of a helper.
func (k *Keyring) program(name string) (string, error) {
	if !helperName.MatchString(name) {
		return "", fmt.Errorf("%s: %q is not the name of a credential helper", k.file, name)
	}
	name = "docker-credential-" + name
	if k.helpers != "" {
		file := filepath.Join(k.helpers, name)
		if _, err := os.Stat(file); err != nil {
			return "", fmt.Errorf("credential helper: %w", err)
		}
		return file, nil
	}
	file, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("credential helper %s is not in PATH of the daemon; "+
			"set images.credential_helpers_dir to its folder", name)
	}
	return file, nil
}
