package spec

import (
	"cmp"
	"encoding/json"
	"fmt"
	"math"
	"path"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cribox/cribox/sandbox/spec/check"
	"github.com/cribox/cribox/sandbox/spec/signals"
)

// defaultPath is for an image that says nothing.
const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// process sets what runs and where. A command replaces entrypoint and cmd of
// the image, args alone replace cmd.
func (d *draft) process() error {
	image, config := d.c.Image.Config, d.c.Config
	argv := Command(image, config.GetCommand(), config.GetArgs())
	if len(argv) == 0 || argv[0] == "" {
		return check.Invalid("command", "is empty, and image %s names no entrypoint and no command", d.c.ImageName)
	}
	if err := check.Strings("command", argv); err != nil {
		return err
	}
	if s := image.StopSignal; s != "" && config.GetStopSignal() == 0 {
		if _, ok := signals.Parse(s); !ok {
			d.note("stop_signal", "the image's %q is not a signal; SIGTERM is used instead", check.Truncate(s))
		}
	}
	cwd, err := workingDir(config.GetWorkingDir(), image.WorkingDir)
	if err != nil {
		return err
	}
	d.spec.Process.Args = argv
	d.spec.Process.Cwd = cwd
	d.spec.Process.Terminal = config.GetTty()
	d.spec.Process.NoNewPrivileges = d.security().GetNoNewPrivs()
	return nil
}

// Command returns what runs. An ENTRYPOINT of one empty string, which some
// tools write for none, is none.
func Command(image ocispec.ImageConfig, command, args []string) []string {
	if len(command) == 0 {
		if len(args) == 0 {
			args = image.Cmd
		}
		if len(image.Entrypoint) != 1 || image.Entrypoint[0] != "" {
			command = image.Entrypoint
		}
	}
	return slices.Concat(command, args)
}

func workingDir(asked, image string) (string, error) {
	if asked == "" {
		asked = image
	}
	if asked == "" {
		return "/", nil
	}
	if err := check.ContainerPath("working_dir", asked); err != nil {
		return "", err
	}
	// A directory below /proc is a way to whatever a descriptor or another
	// process stands in.
	if below(asked, "/proc") && path.Clean(asked) != "/proc" {
		return "", check.Invalid("working_dir", "%q is below /proc", asked)
	}
	return path.Clean(asked), nil
}

// environment: what the image says over our defaults, the request over the
// image. HOME is always there, because an OCI runtime that misses it reads
// the passwd file of the image to find it.
func (d *draft) environment() error {
	var env environ
	env.set(defaultPath)
	if d.c.Config.GetTty() {
		env.set("TERM=xterm")
	}
	if d.pod.Hostname != "" {
		env.set("HOSTNAME=" + d.pod.Hostname)
	}
	home := d.c.User.Home
	if home == "" {
		home = "/"
	}
	env.set("HOME=" + home)
	for _, e := range d.c.Image.Config.Env {
		name, value, ok := strings.Cut(e, "=")
		if !ok || name == "" {
			d.note("image.env", "%q is not NAME=VALUE and was left out", check.Truncate(e))
			continue
		}
		if strings.ContainsRune(e, 0) {
			return check.Invalid("image.env", "%q contains a NUL byte", check.Truncate(name))
		}
		env.set(name + "=" + value)
	}
	for _, e := range d.c.Config.GetEnvs() {
		env.set(e.GetKey() + "=" + d.asUTF8(e.GetKey(), string(e.GetValue())))
	}
	d.spec.Process.Env = env.list
	return checkExecSize("command, args, envs", d.host.execLimit(), 0, slices.Concat(d.spec.Process.Args, env.list))
}

// asUTF8 is the value of a variable. It is bytes to the CRI (a key of a secret that is no text, by
// envFrom), but JSON to the OCI runtime.
func (d *draft) asUTF8(name, value string) string {
	if utf8.ValidString(value) {
		return value
	}
	d.note("envs.value", "of %s is not UTF-8; invalid bytes were replaced by U+FFFD", check.Truncate(name))
	return strings.ToValidUTF8(value, "\ufffd")
}

// environ is a list of NAME=VALUE in which every name occurs once, at the
// place where it first occurred.
type environ struct {
	list []string
	at   map[string]int
}

func (e *environ) set(pair string) {
	name, _, _ := strings.Cut(pair, "=")
	if i, ok := e.at[name]; ok {
		e.list[i] = pair
		return
	}
	if e.at == nil {
		e.at = map[string]int{}
	}
	e.at[name] = len(e.list)
	e.list = append(e.list, pair)
}

// What execve(2) takes: one string is at most 32 pages (MAX_ARG_STRLEN), everything together, with
// a pointer for each, at most a quarter of the stack, but not less than 32 pages and not more than
// 6 MiB. How many strings there are is all one.
const (
	maxExecString              = 128<<10 - 1
	minExecTotal, maxExecTotal = 128 << 10, 6 << 20
	// defaultStack is the kernel's own soft limit of the stack.
	defaultStack = 8 << 20
)

// execLimit is how many bytes of arguments and environment a program can be started with here.
func (h Host) execLimit() int { return execLimit(h.Rlimits, cmp.Or(h.StackLimit, defaultStack)) }

func execLimit(limits []specs.POSIXRlimit, stack uint64) int {
	for _, l := range limits {
		if l.Type == "RLIMIT_STACK" {
			stack = l.Soft
		}
	}
	return int(min(max(stack/4, minExecTotal), maxExecTotal))
}

// checkExecSize foresees E2BIG, which would otherwise come from the OCI
// runtime after everything else has been done. used is what others take of the limit.
func checkExecSize(field string, limit, used int, list []string) error {
	for _, v := range list {
		if len(v) > maxExecString {
			return check.Invalid(field, "%q is %d bytes long; the kernel's limit is %d",
				check.Truncate(v), len(v), maxExecString)
		}
	}
	total := used + execSize(list)
	if total > limit {
		return check.Invalid(field, "are %d bytes together; the kernel's limit is %d, "+
			"a quarter of the limit \"stack\" (see ulimits)", total, limit)
	}
	return nil
}

// execSize returns how many bytes the kernel needs for arguments or environment.
func execSize(list []string) (total int) {
	for _, v := range list {
		total += len(v) + 1 + 8
	}
	return total
}

func (d *draft) user() error {
	u := d.c.User
	d.notes = append(d.notes, u.Notes...)
	groups, seen := []uint32{u.GID}, map[uint32]bool{u.GID: true}
	for _, g := range u.AdditionalGIDs {
		if !seen[g] {
			seen[g] = true
			groups = append(groups, g)
		}
	}
	if err := check.ID("uid", int64(u.UID)); err != nil {
		return err
	}
	for _, g := range groups {
		if err := check.ID("gid", int64(g)); err != nil {
			return err
		}
	}
	d.spec.Process.User = specs.User{UID: u.UID, GID: u.GID, AdditionalGids: groups}
	return CheckMapped(d.pod.Config, d.spec.Process.User)
}

func (d *draft) root() error {
	d.spec.Root = &specs.Root{Path: d.c.Rootfs, Readonly: d.security().GetReadonlyRootfs()}
	return nil
}

func (d *draft) oomScoreAdj() error {
	asked := d.c.Config.GetLinux().GetResources().GetOomScoreAdj()
	d.spec.Process.OOMScoreAdj = new(d.clampOOM("resources.oom_score_adj", int(asked)))
	return nil
}

func (d *draft) clampOOM(field string, asked int) int {
	if asked >= d.host.OOMScoreAdjMin {
		return asked
	}
	d.note(field, "%d was raised to %d, the lowest value that can be set here", asked, d.host.OOMScoreAdjMin)
	return d.host.OOMScoreAdjMin
}

func (d *draft) rlimits() error {
	limits, notes := ClampRlimits(d.host.Rlimits, d.host.RlimitHard)
	d.spec.Process.Rlimits = limits
	d.notes = append(d.notes, notes...)
	return nil
}

// ClampRlimits returns the limits of a process for which wanted was asked, where hard, by name,
// cannot be exceeded. RLIMIT_NOFILE is 1024 and 524288, as systemd gives its services, when wanted
// says nothing of it. The notes tell what of wanted cannot be given; clamped once more there are
// none.
func ClampRlimits(wanted []specs.POSIXRlimit, hard map[string]uint64) ([]specs.POSIXRlimit, []check.Note) {
	var limits []specs.POSIXRlimit
	var notes []check.Note
	if !slices.ContainsFunc(wanted, func(l specs.POSIXRlimit) bool { return l.Type == "RLIMIT_NOFILE" }) {
		limit := uint64(524288)
		if most, ok := hard["RLIMIT_NOFILE"]; ok {
			limit = min(limit, most)
		}
		limits = append(limits, specs.POSIXRlimit{Type: "RLIMIT_NOFILE", Soft: min(1024, limit), Hard: limit})
	}
	for _, l := range wanted {
		if most, ok := hard[l.Type]; ok && l.Hard > most {
			notes = append(notes, check.Notef("rlimits", "%s %s was lowered to %s, the highest value that can be set here",
				l.Type, limitText(l.Hard), limitText(most)))
			l.Hard = most
		}
		l.Soft = min(l.Soft, l.Hard)
		limits = append(limits, l)
	}
	return limits, notes
}

// limitText is a limit as a person writes it.
func limitText(n uint64) string {
	if n == math.MaxUint64 {
		return "unlimited"
	}
	return strconv.FormatUint(n, 10)
}

// Exec is what all commands in a container share: the process of its spec.
type Exec struct {
	process []byte // encoded, without what differs from command to command
	limit   int    // of bytes of arguments and environment
	env     int    // bytes of the environment
}

// NewExec returns what commands share in a container with this encoded spec.
func NewExec(encoded []byte) (*Exec, error) {
	var s struct {
		Process *specs.Process `json:"process"`
	}
	if err := json.Unmarshal(encoded, &s); err != nil {
		return nil, err
	}
	p := s.Process
	if p == nil {
		return nil, fmt.Errorf("exec process: spec without a process: %w", errdefs.ErrInvalidArgument)
	}
	p.Args, p.Terminal, p.ConsoleSize = nil, false, nil
	process, err := json.Marshal(p)
	if err != nil {
		return nil, err
	}
	return &Exec{process: process, limit: execLimit(p.Rlimits, defaultStack), env: execSize(p.Env)}, nil
}

// Process returns the encoded process of a command: it is as confined as the container's own. The
// size of a terminal is the caller's.
func (e *Exec) Process(cmd []string, tty bool) ([]byte, error) {
	if len(cmd) == 0 || cmd[0] == "" {
		return nil, check.Invalid("cmd", "is empty")
	}
	if err := check.Strings("cmd", cmd); err != nil {
		return nil, err
	}
	if err := checkExecSize("cmd", e.limit, e.env, cmd); err != nil {
		return nil, err
	}
	if tty {
		return e.terminalProcess(cmd)
	}
	args, err := json.Marshal(cmd)
	if err != nil {
		return nil, err
	}
	return slices.Concat([]byte(`{"args":`), args, []byte(","), e.process[1:]), nil // which has a user
}

func (e *Exec) terminalProcess(cmd []string) ([]byte, error) {
	var p specs.Process
	if err := json.Unmarshal(e.process, &p); err != nil {
		return nil, err
	}
	p.Args, p.Terminal, p.Env = cmd, true, withDefault(p.Env, "TERM=xterm")
	return json.Marshal(&p)
}

func withDefault(env []string, pair string) []string {
	name, _, _ := strings.Cut(pair, "=")
	for _, e := range env {
		if strings.HasPrefix(e, name+"=") {
			return env
		}
	}
	return append(env, pair)
}
