package apparmor

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
)

// Files of the kernel. A line of profiles is "NAME (MODE)".
const (
	enabledFile  = "/sys/module/apparmor/parameters/enabled"
	profilesFile = "/sys/kernel/security/apparmor/profiles"
	ownFile      = "/proc/self/attr/apparmor/current"
	oldOwnFile   = "/proc/self/attr/current" // before Linux 5.1; another security module may have it
)

const (
	// loadLimit: a parser takes a tenth of a second for our text, and several on a machine that is
	// busy.
	loadLimit = 20 * time.Second
	// mostSaid is what is kept of what a parser complains of, in bytes.
	mostSaid = 1 << 10
)

// Enabled says whether this kernel confines by AppArmor.
func Enabled() bool {
	on, err := os.ReadFile(enabledFile)
	if err != nil || !strings.HasPrefix(string(on), "Y") {
		return false
	}
	_, err = os.Stat(filepath.Dir(profilesFile))
	return err == nil
}

// Loaded says whether the kernel has a profile of this name; of names stacked with //& it must have
// each. An error is that of reading the kernel's list.
func Loaded(name string) (bool, error) {
	list, err := os.ReadFile(profilesFile)
	if err != nil {
		return false, fmt.Errorf("loaded AppArmor profiles: %w", err)
	}
	return isLoaded(string(list), name), nil
}

func isLoaded(list, name string) bool {
	have := map[string]bool{}
	for line := range strings.Lines(list) {
		if i := strings.LastIndex(line, " ("); i > 0 { // a name may hold spaces
			have[line[:i]] = true
		}
	}
	for part := range strings.SplitSeq(name, "//&") {
		if !have[part] {
			return false
		}
	}
	return true
}

// Parser returns the path of apparmor_parser; ErrFailedPrecondition, with the remedy, when there is
// none.
func Parser() (string, error) {
	if path, err := exec.LookPath("apparmor_parser"); err == nil {
		return path, nil
	}
	for _, path := range []string{"/usr/sbin/apparmor_parser", "/sbin/apparmor_parser"} { // not in everybody's PATH
		if info, err := os.Stat(path); err == nil && info.Mode()&0o111 != 0 {
			return path, nil
		}
	}
	return "", fmt.Errorf("there is no apparmor_parser: install the package apparmor and restart cribox: %w",
		errdefs.ErrFailedPrecondition)
}

// Load gives the kernel the default profile, in place of one that it may have: containers in it are
// confined by the new text from then on. ErrFailedPrecondition when there is no parser or it
// refuses, with what it said; context.DeadlineExceeded when it takes too long.
func Load(ctx context.Context) error {
	parser, err := Parser()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, loadLimit)
	defer cancel()
	var said tail
	cmd := exec.CommandContext(ctx, parser, "-Kr") // replace, and leave the distribution's cache alone
	cmd.Env, cmd.Dir, cmd.Stdin, cmd.Stdout, cmd.Stderr = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"}, "/",
		strings.NewReader(Text(own())), &said, &said
	cmd.SysProcAttr, cmd.WaitDelay = &syscall.SysProcAttr{Setpgid: true}, time.Second
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	err = cmd.Run()
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("load AppArmor profile %s: %w", Default, ctx.Err())
	case err != nil:
		return fmt.Errorf("load AppArmor profile %s: %s: %w: %q: %w",
			Default, parser, err, said, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// own returns the profile that this process runs in, "" for none.
func own() string {
	for _, file := range []string{ownFile, oldOwnFile} {
		if b, err := os.ReadFile(file); err == nil {
			return profileOf(string(b))
		}
	}
	return ""
}

// profileOf returns the name in what the kernel says of a process: "NAME (MODE)" or "unconfined".
func profileOf(current string) string {
	current = strings.TrimSpace(strings.TrimRight(current, "\x00"))
	i := strings.LastIndex(current, " (")
	if i < 0 || strings.ContainsAny(current, "\"\n") {
		return ""
	}
	return current[:i]
}

// tail keeps the last bytes that are written to it: a parser ends with what it could not do.
type tail []byte

func (t *tail) Write(b []byte) (int, error) {
	*t = append(*t, b...)
	if beyond := len(*t) - mostSaid; beyond > 0 {
		*t = append((*t)[:0], (*t)[beyond:]...)
	}
	return len(b), nil
}
