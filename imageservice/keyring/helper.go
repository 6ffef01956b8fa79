package keyring

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"
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
	program, err := k.program(name)
	if err != nil {
		return nil, err
	}
	server = strings.TrimSpace(server)
	ctx, cancel := context.WithTimeoutCause(ctx, helperTime, fmt.Errorf("no answer within %s", helperTime))
	defer cancel()
	out := &capped{left: maxReply}
	cmd := exec.CommandContext(ctx, program, "get")
	cmd.Dir, cmd.Stdin, cmd.Stdout = "/", strings.NewReader(server), out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second // a child that has left the group may hold the pipe open
	err = cmd.Run()
	switch {
	case err != nil && context.Cause(ctx) != nil:
		return nil, fmt.Errorf("%s for %s: %w", filepath.Base(program), server, context.Cause(ctx))
	case out.full:
		return nil, fmt.Errorf("%s for %s: its answer has more than %d bytes", filepath.Base(program), server, maxReply)
	case err != nil && bytes.Contains(out.buf.Bytes(), noCredentials):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("%s for %s: %w", filepath.Base(program), server, err)
	}
	var reply struct{ Username, Secret string }
	if err := json.Unmarshal(out.buf.Bytes(), &reply); err != nil || reply.Secret == "" {
		return nil, fmt.Errorf("%s for %s: its answer has no credentials", filepath.Base(program), server)
	}
	e := &Entry{Username: reply.Username, Password: reply.Secret,
		From: fmt.Sprintf("%s for %s", filepath.Base(program), server)}
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

// capped is a buffer that refuses more than left bytes. The buffer is not embedded: io.Copy would
// fill it through its ReadFrom, without a limit.
type capped struct {
	buf  bytes.Buffer
	left int
	full bool // it has refused some
}

func (c *capped) Write(b []byte) (int, error) {
	if len(b) > c.left {
		c.full = true
		return 0, io.ErrShortWrite
	}
	c.left -= len(b)
	return c.buf.Write(b)
}
