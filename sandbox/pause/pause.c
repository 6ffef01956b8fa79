//go:build ignore

// The first process of every pod: it holds the pod's namespaces open, buries
// the pod's orphans and leaves when it is told to. Freestanding: no libc, no
// heap, no writable data, so that a pod costs a page or two.
//
// Contract
//   - SIGTERM and SIGINT end it with code 0, also when it is pid 1, where the
//     kernel drops a signal that is neither blocked nor handled.
//   - Every zombie that is handed to it is reaped, however many die at once.
//   - It is not dumpable: a process of the same user that shares its pid
//     namespace can neither trace it nor open its descriptors.
//   - It never reads, writes or closes a descriptor. Descriptor 3 is a bound
//     datagram socket whose queue holds descriptors of the pod's containers;
//     they live exactly as long as this process does.

// Numbers of the kernel's ABI, written out so that the bytes depend on no header.
enum {
	SIGINT = 2,
	SIGTERM = 15,
	SIGCHLD = 17,
	SIG_BLOCK = 0,
	PR_SET_DUMPABLE = 4,
	PR_SET_NAME = 15,
	WNOHANG = 0x00000001,
	WALL = 0x40000000, // clone()d children too
};

#if defined(__x86_64__)
enum { sys_rt_sigprocmask = 14, sys_wait4 = 61, sys_rt_sigtimedwait = 128, sys_prctl = 157, sys_exit_group = 231 };

static long call(long n, long a, long b, long c, long d)
{
	register long r10 __asm__("r10") = d;
	long ret;
	__asm__ volatile("syscall"
			 : "=a"(ret)
			 : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10)
			 : "rcx", "r11", "memory");
	return ret;
}
#elif defined(__aarch64__)
enum { sys_exit_group = 94, sys_rt_sigprocmask = 135, sys_rt_sigtimedwait = 137, sys_prctl = 167, sys_wait4 = 260 };

static long call(long n, long a, long b, long c, long d)
{
	register long x8 __asm__("x8") = n;
	register long x0 __asm__("x0") = a;
	register long x1 __asm__("x1") = b;
	register long x2 __asm__("x2") = c;
	register long x3 __asm__("x3") = d;
	__asm__ volatile("svc 0"
			 : "+r"(x0)
			 : "r"(x8), "r"(x1), "r"(x2), "r"(x3)
			 : "memory");
	return x0;
}
#else
#error "pause knows amd64 and arm64 only"
#endif

#define BIT(sig) (1UL << ((sig) - 1))

__attribute__((noreturn)) void _start(void)
{
	// The kernel's own signal set: one word, SIGHUP is bit 0.
	unsigned long set = BIT(SIGTERM) | BIT(SIGINT) | BIT(SIGCHLD);

	call(sys_prctl, PR_SET_DUMPABLE, 0, 0, 0);
	// A blocked signal is queued even for pid 1 with the default action.
	call(sys_rt_sigprocmask, SIG_BLOCK, (long)&set, 0, sizeof set);
	call(sys_prctl, PR_SET_NAME, (long)"pause", 0, 0);

	for (;;) {
		// SIGCHLD does not count: one may stand for many deaths, and
		// some may have come before it was blocked.
		while (call(sys_wait4, -1, 0, WNOHANG | WALL, 0) > 0)
			;
		long sig = call(sys_rt_sigtimedwait, (long)&set, 0, 0, sizeof set);
		if (sig == SIGTERM || sig == SIGINT)
			for (;;)
				call(sys_exit_group, 0, 0, 0, 0);
	}
}
