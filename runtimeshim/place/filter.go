package place

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"syscall"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Filter is a seccomp filter that a runtime has made of a profile, and how it loads it.
type Filter struct {
	Flags uint32   `json:"flags"` // SECCOMP_FILTER_FLAG_*
	Code  []uint64 `json:"code"`  // struct sock_filter
}

// Valid reports whether a filter can be loaded.
func (f *Filter) Valid() bool {
	return f != nil && len(f.Code) > 0 && len(f.Code) <= maxInstructions &&
		(f.Flags == 0 || f.Flags == unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW)
}

// Profile is a seccomp profile as a spec has it; nil if there is none.
type Profile []byte

// Key names a profile as one build of a runtime reads it.
type Key [sha256.Size]byte

// String returns the key in hexadecimal digits.
func (k Key) String() string { return hex.EncodeToString(k[:]) }

// ProfileOf returns the profile of a spec.
func ProfileOf(s *specs.Spec) (Profile, error) {
	if s.Linux == nil || s.Linux.Seccomp == nil {
		return nil, nil
	}
	return json.Marshal(s.Linux.Seccomp)
}

// Key returns the key of the profile for the runtime at a path, as its file is now.
func (p Profile) Key(runtime string) (k Key, err error) {
	st, err := os.Stat(runtime)
	if err != nil {
		return k, err
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	if !ok {
		return k, fmt.Errorf("%s: its device is not known", runtime)
	}
	file := fmt.Sprintf("%s\x00%d %d %d %d %d\x00", runtime, sys.Dev, sys.Ino, st.Size(), st.ModTime().UnixNano(),
		sys.Ctim.Nano())
	return sha256.Sum256(append([]byte(file), p...)), nil
}

// runcSeccomp is the profile in runc's state file.
type runcSeccomp struct {
	Flags []specs.LinuxSeccompFlag `json:"flags"`
}

// FlagsIn returns the flags with which runc has loaded the filter of a profile, from its state of
// the container.
func FlagsIn(state []byte) (uint32, error) {
	var st runcState
	if err := json.Unmarshal(state, &st); err != nil {
		return 0, fmt.Errorf("read the runtime's state: %w", err)
	}
	flags, why := st.Config.Seccomp.flags()
	if why != "" {
		return 0, fmt.Errorf("the runtime's state: %s", why)
	}
	return flags, nil
}

// flags: runc before 1.2 does not write them down, and uses none.
func (s *runcSeccomp) flags() (flags uint32, why string) {
	switch {
	case s == nil:
		return 0, "config.seccomp is missing"
	case len(s.Flags) == 0:
		return 0, ""
	case slices.Equal(s.Flags, []specs.LinuxSeccompFlag{specs.LinuxSeccompFlagSpecAllow}):
		return unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW, ""
	}
	return 0, "config.seccomp.flags"
}
