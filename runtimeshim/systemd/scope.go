package systemd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/godbus/dbus/v5"

	"github.com/cribox/cribox/runtimeshim/procfd"
)

// Scope describes a scope with one process, whose limits are those of a container that may use these
// devices only.
type Scope struct {
	Unit        string // its name, which ends in ".scope"
	Slice       string
	Description string
	CPUWeight   uint64 // cpu.weight
	Devices     []Device
}

// Device is an entry of DeviceAllow= (systemd.resource-control(5)): a path below /dev, or all of a kind
// such as char-136.
type Device struct{ Path, Access string }

// Runs reports whether systemd is process 1 of our PID namespace. In a container that has only the
// host's bus, our pids would mean other processes to systemd.
func Runs() bool {
	name, err := os.ReadFile(procfd.InitName)
	return err == nil && strings.TrimSpace(string(name)) == "systemd"
}

// Start makes a scope, and returns when the process is in it. After an error the scope may exist, or come
// to be: see Stop.
func Start(ctx context.Context, s Scope, pid int) error {
	if err := callJob(ctx, s.Unit, "StartTransientUnit", s.Unit, "replace", s.properties(pid), []auxiliary{}); err != nil {
		return fmt.Errorf("have systemd start %s: %w", s.Unit, err)
	}
	return nil
}

// Stop ends a scope and what runs in it, and returns when it is gone; nil if there is none.
func Stop(ctx context.Context, unit string) error {
	err := callJob(ctx, unit, "StopUnit", unit, "replace")
	if refused := (dbus.Error{}); errors.As(err, &refused) && refused.Name == "org.freedesktop.systemd1.NoSuchUnit" {
		return nil
	}
	if err != nil {
		return fmt.Errorf("have systemd stop %s: %w", unit, err)
	}
	return nil
}

// property and auxiliary are (sv) and (sa(sv)) of StartTransientUnit.
type property struct {
	Name  string
	Value dbus.Variant
}

type auxiliary struct {
	Name       string
	Properties []property
}

// properties are those that runc sets, and one more.
//
//   - Delegate, DefaultDependencies: the scope's cgroup is ours to change, and shutdown does not stop it.
//   - DevicePolicy, DeviceAllow: systemd has a program of its own that forbids devices, and loads it again
//     at every daemon-reload.
//   - CollectMode, which runc has no need of because its delete resets the unit: the name becomes free
//     however the scope ends.
func (s Scope) properties(pid int) []property {
	var all []property
	add := func(name string, value any) { all = append(all, property{name, dbus.MakeVariant(value)}) }
	add("Description", s.Description)
	add("Slice", s.Slice)
	add("Delegate", true)
	add("PIDs", []uint32{uint32(pid)})
	for _, what := range []string{"Memory", "CPU", "IO", "Tasks"} {
		add(what+"Accounting", true)
	}
	add("DefaultDependencies", false)
	add("DevicePolicy", "strict")
	add("DeviceAllow", slices.Clone(s.Devices))
	add("CPUWeight", s.CPUWeight)
	add("CollectMode", "inactive-or-failed")
	return all
}
