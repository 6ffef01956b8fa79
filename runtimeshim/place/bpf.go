package place

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/runtimeshim/unixfd"
)

// limitDevices has the processes of a cgroup of version 2 use everybody's devices only. Programs that
// were there before, such as systemd's, are taken away: all of a cgroup's programs have to agree.
func limitDevices(dir string) error {
	cgroup, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer cgroup.Close()
	before, err := attached(cgroup)
	if err != nil {
		return fmt.Errorf("list the device programs: %w", err)
	}
	program, err := load(deviceProgram())
	if err != nil {
		return fmt.Errorf("load the device program: %w", err)
	}
	defer program.Close()
	if err := change(unix.BPF_PROG_ATTACH, cgroup, program, unix.BPF_F_ALLOW_MULTI); err != nil {
		return fmt.Errorf("attach the device program: %w", err)
	}
	for _, id := range before {
		if err := detach(cgroup, id); err != nil {
			return fmt.Errorf("detach a device program: %w", err)
		}
	}
	return nil
}

// maxAttached is how many programs of a kind the kernel lets a cgroup have.
const maxAttached = 64

// attached returns the device programs of a cgroup, by id.
func attached(cgroup *os.File) ([]uint32, error) {
	var ids [maxAttached]uint32
	// With the fields that we do not want: Linux 6.17 and later write the last one, whatever the size.
	query := struct {
		cgroup, kind, effective, flags uint32
		ids                            unsafe.Pointer
		count, _                       uint32
		_, _, _, _                     uint64
	}{cgroup: uint32(unixfd.Of(cgroup)), kind: unix.BPF_CGROUP_DEVICE, ids: unsafe.Pointer(&ids), count: maxAttached}
	if _, err := bpf(unix.BPF_PROG_QUERY, unsafe.Pointer(&query), unsafe.Sizeof(query)); err != nil {
		return nil, err
	}
	return ids[:query.count], nil
}

// load has the kernel check a device program.
func load(code []instruction) (*os.File, error) {
	license := []byte("Apache\x00")
	attr := struct {
		kind, count   uint32
		code, license unsafe.Pointer
	}{unix.BPF_PROG_TYPE_CGROUP_DEVICE, uint32(len(code)), unsafe.Pointer(&code[0]), unsafe.Pointer(&license[0])}
	return found(unix.BPF_PROG_LOAD, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
}

// detach takes a program away from a cgroup. It may have gone by itself.
func detach(cgroup *os.File, id uint32) error {
	attr := struct{ id uint32 }{id}
	f, err := found(unix.BPF_PROG_GET_FD_BY_ID, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if err := change(unix.BPF_PROG_DETACH, cgroup, f, 0); !errors.Is(err, unix.ENOENT) {
		return err
	}
	return nil
}

// change attaches a device program to a cgroup, or detaches it.
func change(command uintptr, cgroup, program *os.File, flags uint32) error {
	attr := struct{ cgroup, program, kind, flags uint32 }{uint32(unixfd.Of(cgroup)), uint32(unixfd.Of(program)),
		unix.BPF_CGROUP_DEVICE, flags}
	_, err := bpf(command, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	return err
}

// found returns the program that a command of bpf(2) makes or finds.
func found(command uintptr, attr unsafe.Pointer, size uintptr) (*os.File, error) {
	fd, err := bpf(command, attr, size)
	if err != nil {
		return nil, err
	}
	return os.NewFile(fd, "device program"), nil
}

// bpf calls bpf(2). The kernel closes what it returns at an execution.
func bpf(command uintptr, attr unsafe.Pointer, size uintptr) (uintptr, error) {
	for {
		r, _, errno := unix.Syscall(unix.SYS_BPF, command, uintptr(attr), size)
		runtime.KeepAlive(attr)
		switch {
		case errno == 0:
			return r, nil
		case command == unix.BPF_PROG_LOAD && errno == unix.EAGAIN: // a signal has interrupted the check
		default:
			return 0, errno
		}
	}
}
