package node

import "golang.org/x/sys/unix"

// x32 asks the kernel for the x32 ABI: getpid by the number that only it has. A kernel built
// without answers ENOSYS.
func x32() bool {
	const x32SyscallBit = 0x40000000
	_, _, errno := unix.RawSyscall(x32SyscallBit|unix.SYS_GETPID, 0, 0, 0)
	return errno != unix.ENOSYS
}
