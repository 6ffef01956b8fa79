//go:build ignore

// Starts one process in namespaces and cgroups of its own, as an OCI runtime does.
// Freestanding: no libc, no heap, no writable data, nothing to parse. All that it
// needs to know is in descriptor PLAN, a sealed file that holds one struct plan. How far
// it came is in descriptor STATE, memory that it shares with its caller.
//
// There are two processes. The outer one joins what exists: cgroups, the user
// namespace, the network namespace. The inner one is born into the new namespaces, as a
// child of the outer one's parent (CLONE_PARENT), mounts the root filesystem, gives up
// every privilege and executes the program. The outer one sleeps meanwhile
// (CLONE_VFORK), then writes the pid.
//
// To add a process to a container that runs, the outer one joins the namespaces of the
// container's first process, and the inner one, which is in the container from its
// birth, joins its cgroups and takes the user, capabilities and filter of the command.
//
// Contract
//   - It is not dumpable from its first instruction on: no process of a namespace that
//     it has joined can trace it or open its descriptors, but one with CAP_SYS_PTRACE
//     in the host's user namespace.
//   - No descriptor crosses the execution but 0 to 3; into a running container, but 0 to 2.
//   - Nothing is read from or written to a file of a container that runs.
//   - The pid file has a pid only if the program was executed.

// Numbers of the kernel's ABI, written out so that the bytes depend on no header.
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef int s32;
typedef unsigned long u64;

enum { PLAN = 4, STATE = 5, FIRST_PRIVATE = 4 };

#define MODE_START 1
#define MODE_TAKE 2
#define MODE_JOIN 3

// The steps, in the order of a start. plan.go has their names.
enum step {
	STEP_PLAN = 1,
	STEP_OOM_SCORE,
	STEP_LIMIT,
	STEP_CGROUP,
	STEP_USER_NAMESPACE,
	STEP_NETWORK_NAMESPACE,
	STEP_CLONE,
	STEP_KEYRING,
	STEP_PROPAGATION,
	STEP_ROOT,
	STEP_MOUNT,
	STEP_DEVICE,
	STEP_LINK,
	STEP_SYSCTL,
	STEP_HOSTNAME,
	STEP_PIVOT,
	STEP_NULL,
	STEP_READONLY,
	STEP_NO_NEW_PRIVILEGES,
	STEP_BOUNDING,
	STEP_GROUPS,
	STEP_USER,
	STEP_CAPABILITIES,
	STEP_FOLDER,
	STEP_CLOSE,
	STEP_FILTER,
	STEP_EXECUTE,
	STEP_PID_FILE,
	STEP_TRACE,
	STEP_TAKE,
	STEP_STRINGS,
	STEP_NAMESPACES,
	STEP_STDIO,
	STEP_LOOK,
	STEP_APPARMOR,
	STEP_SCOPE,
};

struct limit {
	u32 what, pad;
	u64 soft, hard;
};

struct mount {
	char type[16];
	char source[16];
	char target[64];
	u64 attributes;
	u32 readonly, options;
	struct {
		char key[16], value[32];
	} option[8];
};

struct sysctl {
	char name[160]; // "sys/kernel/sem"
	char value[352];
};

struct plan {
	u32 size, mode;
	u64 namespaces; // CLONE_NEW*
	s32 userns, netns, pid_file;
	s32 scope; // MODE_START: has a byte once the process is in its cgroup, which the service manager makes; -1 = none
	s32 cgroups, oom_score, set_oom_score, limits;
	s32 cgroup[32]; // cgroup.procs files, open for writing
	struct limit limit[16];
	u32 uid, gid, groups, group[32];
	u32 ring_permissions;
	char ring[96];
	u32 mounts, sysctls;
	struct mount mount[8];
	struct sysctl sysctl[32];
	u32 hostname_length, root_readonly;
	char hostname[72];
	char root[4096];
	u32 arg[8], env[8]; // offsets into text, 0 ends
	char text[1024];
	s32 take, out; // MODE_TAKE: from which process, to which descriptor
	// MODE_JOIN: the container's first process, of which the namespaces are joined; others; and a
	// file with the strings of a command, each of which ends with 0: arguments, environment, and
	// the files that the command may be.
	s32 pidfd, strings;
	u32 others, pad2;
	struct {
		s32 fd;
		u32 kind;
	} other[8];
	u64 strings_size;
	u32 args, envs, files, no_new_privileges;
	u64 bounding, effective, permitted, inheritable, ambient;
	char folder[4096];
	char apparmor[512]; // "exec NAME", "" = no profile
	u32 filter_flags, instructions;
	u64 filter[4096]; // struct sock_filter
};

// What the two processes tell each other and the caller: the step that they are in, and
// its error. The pid of the inner process stands at PID_AT of the same file, on a page that
// the inner process never has.
struct state {
	s32 step, error, index;
};

#define PID_AT 0x10000

#if defined(__x86_64__)
enum {
	sys_read = 0, sys_write = 1, sys_close = 3, sys_mmap = 9, sys_madvise = 28, sys_rt_sigaction = 13, sys_rt_sigprocmask = 14, sys_execve = 59,
	sys_wait4 = 61, sys_getcwd = 79, sys_chdir = 80, sys_fchdir = 81, sys_umask = 95, sys_ptrace = 101, sys_setsid = 112,
	sys_setuid = 105, sys_setgid = 106, sys_fchown = 93, sys_setgroups = 116, sys_setresuid = 117, sys_setresgid = 119, sys_capset = 126, sys_fstatfs = 138, sys_pivot_root = 155,
	sys_prctl = 157, sys_mount = 165, sys_umount2 = 166, sys_sethostname = 170, sys_sched_setaffinity = 203,
	sys_exit_group = 231, sys_keyctl = 250, sys_openat = 257, sys_mknodat = 259, sys_symlinkat = 266, sys_faccessat = 269,
	sys_dup3 = 292, sys_prlimit64 = 302, sys_setns = 308, sys_seccomp = 317, sys_statx = 332,
	O_DIRECTORY = 0x10000, O_NOFOLLOW = 0x20000,
};

static long call(long n, long a, long b, long c, long d, long e, long f)
{
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;
	register long r9 __asm__("r9") = f;
	long ret;
	__asm__ volatile("syscall"
			 : "=a"(ret)
			 : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
	return ret;
}
#elif defined(__aarch64__)
enum {
	sys_getcwd = 17, sys_dup3 = 24, sys_mknodat = 33, sys_symlinkat = 36, sys_umount2 = 39, sys_mount = 40,
	sys_pivot_root = 41, sys_fstatfs = 44, sys_faccessat = 48, sys_chdir = 49, sys_fchdir = 50, sys_openat = 56,
	sys_close = 57, sys_read = 63, sys_write = 64, sys_capset = 91, sys_exit_group = 94, sys_ptrace = 117, sys_sched_setaffinity = 122,
	sys_rt_sigaction = 134, sys_rt_sigprocmask = 135, sys_setresuid = 147, sys_setresgid = 149, sys_setsid = 157,
	sys_setuid = 146, sys_setgid = 144, sys_fchown = 55, sys_setgroups = 159, sys_sethostname = 161, sys_umask = 166, sys_prctl = 167, sys_keyctl = 219, sys_execve = 221,
	sys_mmap = 222, sys_madvise = 233, sys_wait4 = 260, sys_prlimit64 = 261, sys_setns = 268, sys_seccomp = 277, sys_statx = 291,
	O_DIRECTORY = 0x4000, O_NOFOLLOW = 0x8000,
};

static long call(long n, long a, long b, long c, long d, long e, long f)
{
	register long x8 __asm__("x8") = n;
	register long x0 __asm__("x0") = a;
	register long x1 __asm__("x1") = b;
	register long x2 __asm__("x2") = c;
	register long x3 __asm__("x3") = d;
	register long x4 __asm__("x4") = e;
	register long x5 __asm__("x5") = f;
	__asm__ volatile("svc 0"
			 : "+r"(x0)
			 : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5)
			 : "memory");
	return x0;
}
#else
#error "place knows amd64 and arm64 only"
#endif

// The same on both.
enum {
	sys_open_tree = 428, sys_move_mount = 429, sys_fsopen = 430, sys_fsconfig = 431, sys_fsmount = 432, sys_clone3 = 435,
	sys_close_range = 436, sys_openat2 = 437, sys_faccessat2 = 439, sys_mount_setattr = 442,
};

enum {
	AT_FDCWD = -100, AT_EACCESS = 0x200, AT_EMPTY_PATH = 0x1000, X_OK = 1,
	EPERM = 1, EACCES = 13, EINVAL = 22, EROFS = 30, ENOSYS = 38, ENOTDIR = 20, EBADMSG = 74, EDQUOT = 122, ECANCELED = 125, ENOKEY = 126,
	O_RDONLY = 0, O_WRONLY = 1, O_RDWR = 2, O_CREAT = 0x40, O_CLOEXEC = 0x80000, O_PATH = 0x200000,
	RESOLVE_NO_XDEV = 1, RESOLVE_NO_MAGICLINKS = 2, RESOLVE_NO_SYMLINKS = 4, RESOLVE_BENEATH = 8, RESOLVE_IN_ROOT = 16,
	PROT_READ = 1, PROT_WRITE = 2, MAP_SHARED = 1, MAP_PRIVATE = 2, MAP_ANONYMOUS = 0x20, MADV_DONTFORK = 10,
	SIG_SETMASK = 2,
	CLONE_VFORK = 0x4000, CLONE_PARENT = 0x8000, CLONE_PARENT_SETTID = 0x100000, CLONE_NEWUSER = 0x10000000, CLONE_NEWNET = 0x40000000,
	PR_SET_PDEATHSIG = 1, PR_SET_DUMPABLE = 4, PR_GET_SECCOMP = 21, PR_SET_KEEPCAPS = 8, PR_CAPBSET_DROP = 24, PR_SET_NO_NEW_PRIVS = 38, PR_CAP_AMBIENT = 47,
	PR_CAP_AMBIENT_RAISE = 2, PR_CAP_AMBIENT_CLEAR_ALL = 4,
	KEYCTL_JOIN_SESSION_KEYRING = 1, KEYCTL_SETPERM = 5,
	MS_BIND = 4096, MS_REC = 16384, MS_PRIVATE = 1 << 18, MS_SLAVE = 1 << 19, MNT_DETACH = 2,
	FSOPEN_CLOEXEC = 1, FSMOUNT_CLOEXEC = 1, FSCONFIG_SET_FLAG = 0, FSCONFIG_SET_STRING = 1, FSCONFIG_CMD_CREATE = 6,
	MOVE_MOUNT_F_EMPTY_PATH = 4, MOVE_MOUNT_T_EMPTY_PATH = 0x40, OPEN_TREE_CLONE = 1,
	MOUNT_ATTR_RDONLY = 1, MOUNT_ATTR_NOSUID = 2, MOUNT_ATTR_NODEV = 4, MOUNT_ATTR_NOEXEC = 8,
	S_IFMT = 0170000, S_IFCHR = 0020000, S_IFDIR = 0040000, STATX_BASIC_STATS = 0x7ff, PROC_SUPER_MAGIC = 0x9fa0,
	CLOSE_RANGE_CLOEXEC = 4, SECCOMP_SET_MODE_FILTER = 1, CAPABILITY_VERSION_3 = 0x20080522,
	PTRACE_SEIZE = 0x4206, PTRACE_INTERRUPT = 0x4207, PTRACE_SECCOMP_GET_FILTER = 0x420c, PTRACE_DETACH = 17,
	WALL = 0x40000000, ENOENT = 2,
};

// The compiler calls it.
void *memset(void *at, int byte, u64 n)
{
	for (u64 i = 0; i < n; i++)
		((volatile u8 *)at)[i] = (u8)byte;
	return at;
}

__attribute__((noreturn)) static void leave(int code)
{
	for (;;)
		call(sys_exit_group, code, 0, 0, 0, 0, 0);
}

// fail ends the process.
__attribute__((noreturn)) static void fail(volatile struct state *s, long error)
{
	s->error = (s32)-error;
	leave(1);
}

// must ends the process when a call has failed, and returns its result.
static long must(volatile struct state *s, long result)
{
	if (result < 0)
		fail(s, result);
	return result;
}

static u32 length(const char *s)
{
	u32 n = 0;
	while (s[n])
		n++;
	return n;
}

static long open_beneath(long dir, const char *name, u64 flags, u64 resolve)
{
	u64 how[3] = {flags | O_CLOEXEC, 0, resolve};
	return call(sys_openat2, dir, (long)name, (long)how, sizeof how, 0, 0);
}

static int is_proc(long fd)
{
	u64 statfs[32]; // the kernel's struct has 120 bytes
	return call(sys_fstatfs, fd, (long)statfs, 0, 0, 0, 0) == 0 && statfs[0] == PROC_SUPER_MAGIC;
}

static int is_null(long fd)
{
	u32 st[64]; // struct statx: mode is the low half of word 7, the device words 32 and 33
	if (call(sys_statx, fd, (long)"", AT_EMPTY_PATH, STATX_BASIC_STATS, (long)st, 0) < 0)
		return 0;
	return (st[7] & S_IFMT) == S_IFCHR && st[32] == 1 && st[33] == 3;
}

// decimal writes n at the end of a buffer of 12 bytes, and returns where it begins.
static char *decimal(char *buf, long n)
{
	char *p = buf + 12;
	unsigned long rest = n < 0 ? -(unsigned long)n : (unsigned long)n;
	do
		*--p = (char)('0' + rest % 10);
	while (rest /= 10);
	if (n < 0)
		*--p = '-';
	return p;
}

// write_all: files of cgroups and of proc take a value in one write or not at all.
static void write_all(volatile struct state *s, long fd, const char *text, u32 n)
{
	long done = must(s, call(sys_write, fd, (long)text, n, 0, 0, 0));
	if ((u32)done != n)
		fail(s, -EINVAL);
}

static void reset_signals(void)
{
	u64 action[4] = {0, 0, 0, 0}, set = 0;
	for (int sig = 1; sig <= 64; sig++) // fails for SIGKILL and SIGSTOP
		call(sys_rt_sigaction, sig, (long)action, 0, 8, 0, 0);
	call(sys_rt_sigprocmask, SIG_SETMASK, (long)&set, 0, 8, 0, 0);
	call(sys_prctl, PR_SET_PDEATHSIG, 0, 0, 0, 0, 0);
}

// set_oom_score goes through the host's /proc: lowering it needs a privilege of the host.
static void set_oom_score(volatile struct state *s, const struct plan *p)
{
	char buf[12];
	s->step = STEP_OOM_SCORE;
	long fd = must(s, call(sys_openat, AT_FDCWD, (long)"/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC, 0, 0, 0));
	if (!is_proc(fd))
		fail(s, -EBADMSG);
	char *text = decimal(buf, p->oom_score);
	write_all(s, fd, text, (u32)(buf + 12 - text));
	call(sys_close, fd, 0, 0, 0, 0, 0);
}

// set_apparmor asks for the profile that the next program gets. It goes through the host's /proc,
// and the inner process is born with it: a container may have anything at its own /proc.
static void set_apparmor(volatile struct state *s, const struct plan *p)
{
	s->step = STEP_APPARMOR;
	if (!p->apparmor[0])
		return;
	long fd = must(s, call(sys_openat, AT_FDCWD, (long)"/proc/self/attr/apparmor/exec", O_WRONLY | O_CLOEXEC, 0, 0, 0));
	if (!is_proc(fd))
		fail(s, -EBADMSG);
	write_all(s, fd, p->apparmor, length(p->apparmor));
	call(sys_close, fd, 0, 0, 0, 0, 0);
}

static void set_limits(volatile struct state *s, const struct plan *p)
{
	s->step = STEP_LIMIT;
	for (s32 i = 0; i < p->limits; i++) {
		s->index = i;
		must(s, call(sys_prlimit64, 0, p->limit[i].what, (long)&p->limit[i].soft, 0, 0, 0));
	}
}

static void join_cgroups(volatile struct state *s, const struct plan *p)
{
	u64 all[128];
	s->step = STEP_CGROUP;
	for (s32 i = 0; i < p->cgroups; i++) {
		s->index = i;
		write_all(s, p->cgroup[i], "0", 1);
	}
	// What the shim was bound to is not for others; the cpuset remains.
	for (int i = 0; i < 128; i++)
		((volatile u64 *)all)[i] = ~0UL;
	call(sys_sched_setaffinity, 0, sizeof all, (long)all, 0, 0, 0);
}

// await_scope waits until the caller has had this process put into its cgroup. Without the caller it
// ends.
static void await_scope(volatile struct state *s, const struct plan *p)
{
	char word;
	s->step = STEP_SCOPE;
	if (p->scope >= 0 && must(s, call(sys_read, p->scope, (long)&word, 1, 0, 0, 0)) != 1)
		fail(s, -ECANCELED);
}

// join takes this process into everything that exists already.
static void join(volatile struct state *s, const struct plan *p)
{
	if (p->set_oom_score)
		set_oom_score(s, p);
	set_apparmor(s, p);
	set_limits(s, p);
	await_scope(s, p);
	join_cgroups(s, p);
	s->step = STEP_USER_NAMESPACE;
	if (p->userns >= 0) { // first: the namespaces that are made later belong to it
		must(s, call(sys_setns, p->userns, CLONE_NEWUSER, 0, 0, 0, 0));
		must(s, call(sys_setgroups, 0, 0, 0, 0, 0, 0));
		must(s, call(sys_setresgid, 0, 0, 0, 0, 0, 0));
		must(s, call(sys_setresuid, 0, 0, 0, 0, 0, 0));
		call(sys_prctl, PR_SET_DUMPABLE, 0, 0, 0, 0, 0); // a change of user may have reset it
	}
	s->step = STEP_NETWORK_NAMESPACE;
	if (p->netns >= 0)
		must(s, call(sys_setns, p->netns, CLONE_NEWNET, 0, 0, 0, 0));
}

static void join_keyring(volatile struct state *s, const struct plan *p)
{
	s->step = STEP_KEYRING;
	if (!p->ring[0])
		return;
	long ring = call(sys_keyctl, KEYCTL_JOIN_SESSION_KEYRING, (long)p->ring, 0, 0, 0, 0);
	if (ring == -ENOSYS || (ring == -EDQUOT && p->mode == MODE_START)) // no keyrings; or the host's quota is used up
		return;
	must(s, ring);
	if (p->mode == MODE_START)
		must(s, call(sys_keyctl, KEYCTL_SETPERM, ring, p->ring_permissions, 0, 0, 0));
}

// bind_root mounts the root filesystem onto itself, where nothing propagates to or from.
static long bind_root(volatile struct state *s, const struct plan *p)
{
	char at[sizeof p->root];
	u32 n = 0;
	s->step = STEP_PROPAGATION;
	must(s, call(sys_mount, 0, (long)"/", 0, MS_SLAVE | MS_REC, 0, 0));
	s->step = STEP_ROOT;
	for (; p->root[n]; n++)
		((volatile char *)at)[n] = p->root[n];
	at[n] = 0;
	// The mount that the folder is in is that of the nearest folder where something is mounted.
	for (;;) {
		long r = call(sys_mount, 0, (long)at, 0, MS_PRIVATE, 0, 0);
		if (r == 0)
			break;
		if (r != -EINVAL || n <= 1)
			fail(s, r);
		while (n > 1 && at[n - 1] != '/')
			n--;
		if (n > 1)
			n--;
		at[n] = 0;
	}
	must(s, call(sys_mount, (long)p->root, (long)p->root, (long)"bind", MS_BIND | MS_REC, 0, 0));
	return must(s, open_beneath(AT_FDCWD, p->root, O_PATH | O_DIRECTORY | O_NOFOLLOW, RESOLVE_NO_MAGICLINKS));
}

static void attach(volatile struct state *s, long from, long to)
{
	must(s, call(sys_move_mount, from, (long)"", to, (long)"", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH, 0));
	call(sys_close, from, 0, 0, 0, 0, 0);
	call(sys_close, to, 0, 0, 0, 0, 0);
}

static void mount_all(volatile struct state *s, const struct plan *p, long root)
{
	s->step = STEP_MOUNT;
	for (u32 i = 0; i < p->mounts; i++) {
		const struct mount *m = &p->mount[i];
		s->index = (s32)i;
		long fs = must(s, call(sys_fsopen, (long)m->type, FSOPEN_CLOEXEC, 0, 0, 0, 0));
		must(s, call(sys_fsconfig, fs, FSCONFIG_SET_STRING, (long)"source", (long)m->source, 0, 0));
		if (m->readonly)
			must(s, call(sys_fsconfig, fs, FSCONFIG_SET_FLAG, (long)"ro", 0, 0, 0));
		for (u32 k = 0; k < m->options; k++)
			must(s, call(sys_fsconfig, fs, FSCONFIG_SET_STRING, (long)m->option[k].key, (long)m->option[k].value, 0, 0));
		must(s, call(sys_fsconfig, fs, FSCONFIG_CMD_CREATE, 0, 0, 0, 0));
		long mounted = must(s, call(sys_fsmount, fs, FSMOUNT_CLOEXEC, (long)m->attributes, 0, 0, 0));
		call(sys_close, fs, 0, 0, 0, 0, 0);
		attach(s, mounted, must(s, open_beneath(root, m->target, O_PATH | O_DIRECTORY, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)));
	}
}

struct device {
	char name[16];
	u32 minor;
};

// make_device: in a user namespace no device can be made, and the host's is mounted.
static void make_device(volatile struct state *s, const struct plan *p, long dev, const char *name, u32 major, u32 minor)
{
	char host[24];
	u32 n = 0, from = 0;
	if (p->userns < 0) {
		must(s, call(sys_mknodat, dev, (long)name, S_IFCHR | 0666, major << 8 | minor, 0, 0));
		return;
	}
	for (; from < 5; from++)
		((volatile char *)host)[n++] = "/dev/"[from];
	for (from = 0; name[from]; from++)
		((volatile char *)host)[n++] = name[from];
	host[n] = 0;
	call(sys_close, must(s, call(sys_openat, dev, (long)name, O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0, 0, 0)), 0, 0, 0, 0, 0);
	long from_host = must(s, call(sys_open_tree, AT_FDCWD, (long)host, OPEN_TREE_CLONE | O_CLOEXEC, 0, 0, 0));
	attach(s, from_host, must(s, open_beneath(dev, name, O_PATH, RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS)));
}

static void make_link(volatile struct state *s, const char *to, long dev, const char *name)
{
	must(s, call(sys_symlinkat, (long)to, dev, (long)name, 0, 0, 0));
	s->index++;
}

static void fill_dev(volatile struct state *s, const struct plan *p, long root)
{
	s->step = STEP_DEVICE;
	s->index = 0;
	long dev = must(s, open_beneath(root, "dev", O_PATH | O_DIRECTORY, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS));
	make_device(s, p, dev, "null", 1, 3);
	make_device(s, p, dev, "random", 1, 8);
	make_device(s, p, dev, "full", 1, 7);
	make_device(s, p, dev, "tty", 5, 0);
	make_device(s, p, dev, "zero", 1, 5);
	make_device(s, p, dev, "urandom", 1, 9);
	s->step = STEP_LINK;
	make_link(s, "pts/ptmx", dev, "ptmx");
	make_link(s, "/proc/self/fd", dev, "fd");
	make_link(s, "/proc/self/fd/0", dev, "stdin");
	make_link(s, "/proc/self/fd/1", dev, "stdout");
	make_link(s, "/proc/self/fd/2", dev, "stderr");
	if (call(sys_faccessat, AT_FDCWD, (long)"/proc/kcore", 0, 0, 0, 0) == 0)
		make_link(s, "/proc/kcore", dev, "core");
	call(sys_close, dev, 0, 0, 0, 0, 0);
}

// set_sysctls writes through a proc of its own, which is mounted nowhere: nothing can be mounted over it.
static void set_sysctls(volatile struct state *s, const struct plan *p)
{
	s->step = STEP_SYSCTL;
	s->index = 0;
	if (p->sysctls == 0)
		return;
	long fs = must(s, call(sys_fsopen, (long)"proc", FSOPEN_CLOEXEC, 0, 0, 0, 0));
	must(s, call(sys_fsconfig, fs, FSCONFIG_CMD_CREATE, 0, 0, 0, 0));
	long proc = must(s, call(sys_fsmount, fs, FSMOUNT_CLOEXEC, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC, 0, 0, 0));
	if (!is_proc(proc))
		fail(s, -EBADMSG);
	for (u32 i = 0; i < p->sysctls; i++) {
		s->index = (s32)i;
		long fd = must(s, open_beneath(proc, p->sysctl[i].name, O_WRONLY,
					       RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV));
		write_all(s, fd, p->sysctl[i].value, length(p->sysctl[i].value));
		call(sys_close, fd, 0, 0, 0, 0, 0);
	}
	call(sys_close, fs, 0, 0, 0, 0, 0);
	call(sys_close, proc, 0, 0, 0, 0, 0);
}

static void pivot(volatile struct state *s, long root)
{
	s->step = STEP_PIVOT;
	long old = must(s, call(sys_openat, AT_FDCWD, (long)"/", O_PATH | O_DIRECTORY | O_CLOEXEC, 0, 0, 0));
	must(s, call(sys_fchdir, root, 0, 0, 0, 0, 0));
	must(s, call(sys_pivot_root, (long)".", (long)".", 0, 0, 0, 0));
	must(s, call(sys_fchdir, old, 0, 0, 0, 0, 0));
	must(s, call(sys_mount, 0, (long)".", 0, MS_SLAVE | MS_REC, 0, 0)); // the unmount must not reach the host
	must(s, call(sys_umount2, (long)".", MNT_DETACH, 0, 0, 0, 0));
	must(s, call(sys_chdir, (long)"/", 0, 0, 0, 0, 0));
	call(sys_close, old, 0, 0, 0, 0, 0);
	call(sys_close, root, 0, 0, 0, 0, 0);
}

// own_null replaces the host's /dev/null by that of the root filesystem.
static void own_null(volatile struct state *s)
{
	s->step = STEP_NULL;
	long null = must(s, call(sys_openat, AT_FDCWD, (long)"/dev/null", O_RDWR | O_CLOEXEC, 0, 0, 0));
	if (!is_null(null))
		fail(s, -EBADMSG);
	for (int fd = 0; fd < 3; fd++)
		if (is_null(fd))
			must(s, call(sys_dup3, null, fd, 0, 0, 0, 0));
	call(sys_close, null, 0, 0, 0, 0, 0);
}

// drop gives up every privilege.
static void drop(volatile struct state *s, const struct plan *p)
{
	u32 head[2] = {CAPABILITY_VERSION_3, 0}, none[6] = {0, 0, 0, 0, 0, 0};
	s->step = STEP_NO_NEW_PRIVILEGES;
	must(s, call(sys_prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0, 0));
	s->step = STEP_BOUNDING;
	for (int cap = 0; cap < 64; cap++) {
		long r = call(sys_prctl, PR_CAPBSET_DROP, cap, 0, 0, 0, 0);
		if (r == -EINVAL && cap > 0)
			break;
		must(s, r);
	}
	s->step = STEP_GROUPS;
	must(s, call(sys_setgroups, p->groups, (long)p->group, 0, 0, 0, 0));
	s->step = STEP_USER;
	must(s, call(sys_setresgid, p->gid, p->gid, p->gid, 0, 0, 0));
	must(s, call(sys_setresuid, p->uid, p->uid, p->uid, 0, 0, 0));
	call(sys_prctl, PR_SET_DUMPABLE, 0, 0, 0, 0, 0); // a change of user may have reset it
	s->step = STEP_CAPABILITIES;
	must(s, call(sys_prctl, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0, 0));
	must(s, call(sys_capset, (long)head, (long)none, 0, 0, 0, 0));
}

static void load_filter(volatile struct state *s, const struct plan *p)
{
	struct {
		u16 n, pad[3];
		const u64 *filter;
	} program = {(u16)p->instructions, {0, 0, 0}, p->filter};
	s->step = STEP_FILTER;
	if (p->instructions)
		must(s, call(sys_seccomp, SECCOMP_SET_MODE_FILTER, p->filter_flags, (long)&program, 0, 0, 0));
}

// execute starts the program, from inside its root filesystem and with descriptors 0 to 3.
static void execute(volatile struct state *s, const struct plan *p)
{
	char folder[4096];
	const char *argv[9], *envp[9];
	int n = 0;
	for (; n < 8 && p->arg[n]; n++)
		((const char *volatile *)argv)[n] = p->text + p->arg[n];
	argv[n] = 0;
	for (n = 0; n < 8 && p->env[n]; n++)
		((const char *volatile *)envp)[n] = p->text + p->env[n];
	envp[n] = 0;
	s->step = STEP_FOLDER;
	must(s, call(sys_getcwd, (long)folder, sizeof folder, 0, 0, 0, 0));
	if (folder[0] != '/' || folder[1])
		fail(s, -ENOTDIR);
	s->step = STEP_CLOSE;
	must(s, call(sys_close_range, FIRST_PRIVATE, ~0U, CLOSE_RANGE_CLOEXEC, 0, 0, 0));
	load_filter(s, p);
	s->step = STEP_EXECUTE;
	fail(s, call(sys_execve, (long)argv[0], (long)argv, (long)envp, 0, 0, 0));
}

static void inner(volatile struct state *s, const struct plan *p)
{
	call(sys_setsid, 0, 0, 0, 0, 0, 0);
	call(sys_umask, 0, 0, 0, 0, 0, 0);
	join_keyring(s, p);
	long root = bind_root(s, p);
	mount_all(s, p, root);
	fill_dev(s, p, root);
	set_sysctls(s, p);
	s->step = STEP_HOSTNAME;
	if (p->hostname_length)
		must(s, call(sys_sethostname, (long)p->hostname, p->hostname_length, 0, 0, 0, 0));
	pivot(s, root);
	own_null(s);
	s->step = STEP_READONLY;
	if (p->root_readonly) {
		u64 attr[4] = {MOUNT_ATTR_RDONLY, 0, 0, 0};
		must(s, call(sys_mount_setattr, AT_FDCWD, (long)"/", 0, (long)attr, sizeof attr, 0));
	}
	call(sys_umask, 022, 0, 0, 0, 0, 0);
	drop(s, p);
	execute(s, p);
}

// own_stdio gives the standard streams to the user of the command, who may then open /dev/stdout.
static void own_stdio(volatile struct state *s, const struct plan *p)
{
	u32 st[64]; // struct statx: the user is word 5
	s->step = STEP_STDIO;
	for (int fd = 0; fd < 3; fd++) {
		s->index = fd;
		must(s, call(sys_statx, fd, (long)"", AT_EMPTY_PATH, STATX_BASIC_STATS, (long)st, 0));
		if (st[5] == p->uid || is_null(fd))
			continue;
		long r = call(sys_fchown, fd, p->uid, -1, 0, 0, 0);
		if (r != -EPERM && r != -EROFS)
			must(s, r);
	}
}

// enter goes to the working folder, as the user if root may not go there; it has to be in the container.
static void enter(volatile struct state *s, const struct plan *p, long as_root)
{
	char folder[4096];
	s->step = STEP_FOLDER;
	if (as_root)
		must(s, call(sys_chdir, (long)p->folder, 0, 0, 0, 0, 0));
	must(s, call(sys_getcwd, (long)folder, sizeof folder, 0, 0, 0, 0));
	if (folder[0] != '/')
		fail(s, -ENOTDIR);
}

// become takes the user, the groups and the capabilities of the command, and its working folder.
static void become(volatile struct state *s, const struct plan *p)
{
	u32 head[2] = {CAPABILITY_VERSION_3, 0};
	u32 caps[6] = {(u32)p->effective, (u32)p->permitted, (u32)p->inheritable,
		       (u32)(p->effective >> 32), (u32)(p->permitted >> 32), (u32)(p->inheritable >> 32)};
	s->step = STEP_FOLDER;
	long moved = call(sys_chdir, (long)p->folder, 0, 0, 0, 0, 0);
	if (moved != -EPERM && moved != -EACCES)
		must(s, moved);
	s->step = STEP_BOUNDING;
	for (int cap = 0; cap < 64; cap++) {
		if (p->bounding >> cap & 1)
			continue;
		long r = call(sys_prctl, PR_CAPBSET_DROP, cap, 0, 0, 0, 0);
		if (r == -EINVAL && cap > 0)
			break;
		must(s, r);
	}
	must(s, call(sys_prctl, PR_SET_KEEPCAPS, 1, 0, 0, 0, 0));
	s->step = STEP_GROUPS;
	must(s, call(sys_setgroups, p->groups, (long)p->group, 0, 0, 0, 0));
	s->step = STEP_USER;
	must(s, call(sys_setgid, p->gid, 0, 0, 0, 0, 0));
	must(s, call(sys_setuid, p->uid, 0, 0, 0, 0, 0));
	call(sys_prctl, PR_SET_DUMPABLE, 0, 0, 0, 0, 0); // a change of user may have reset it
	enter(s, p, moved);
	s->step = STEP_CAPABILITIES;
	must(s, call(sys_prctl, PR_SET_KEEPCAPS, 0, 0, 0, 0, 0));
	must(s, call(sys_capset, (long)head, (long)caps, 0, 0, 0, 0));
	must(s, call(sys_prctl, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0, 0));
	for (int cap = 0; cap < 64; cap++)
		if (p->ambient >> cap & 1) // it stays off where it cannot be raised
			call(sys_prctl, PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, cap, 0, 0, 0);
}

// lay writes where n strings begin, and 0, to at, and returns where the next one begins.
static const char *lay(const char *text, u32 n, const char *volatile *at)
{
	for (u32 i = 0; i < n; i++) {
		at[i] = text;
		text += length(text) + 1;
	}
	at[n] = 0;
	return text;
}

// look returns the file to execute as runc chooses it: the first that the command's user may
// execute, and that is no folder. Without one, or if a call is filtered, the caller has the
// runtime decide.
static const char *look(volatile struct state *s, const char *const volatile *files)
{
	u32 st[64]; // struct statx: mode is the low half of word 7
	s->step = STEP_LOOK;
	if (!files[0] || !files[1])
		return files[0];
	for (; *files; files++) {
		long r = call(sys_statx, AT_FDCWD, (long)*files, 0, STATX_BASIC_STATS, (long)st, 0);
		if (r == 0 && (st[7] & S_IFMT) == S_IFDIR)
			continue;
		if (r == 0)
			r = call(sys_faccessat2, AT_FDCWD, (long)*files, X_OK, AT_EACCESS, 0, 0);
		if (r == 0)
			return *files;
		if (r != -ENOENT && r != -EACCES && r != -ENOTDIR)
			fail(s, r);
	}
	fail(s, -ENOENT);
}

// command is the inner process of a running container. pointers has room for all strings.
static void command(volatile struct state *s, const struct plan *p, const char *text, const char *volatile *pointers)
{
	const char *volatile *argv = pointers, *volatile *envp = argv + p->args + 1, *volatile *files = envp + p->envs + 1;
	join_cgroups(s, p);
	s->step = STEP_CLOSE; // really, and before a file of the container is opened: nothing is left to go back to
	must(s, call(sys_close_range, 3, ~0U, 0, 0, 0, 0));
	call(sys_setsid, 0, 0, 0, 0, 0, 0);
	join_keyring(s, p);
	set_limits(s, p);
	own_stdio(s, p);
	s->step = STEP_NO_NEW_PRIVILEGES;
	if (p->no_new_privileges)
		must(s, call(sys_prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0, 0));
	else
		load_filter(s, p); // needs a privilege
	become(s, p);
	lay(lay(lay(text, p->args, argv), p->envs, envp), p->files, files);
	const char *file = look(s, files);
	if (p->no_new_privileges)
		load_filter(s, p);
	s->step = STEP_EXECUTE;
	fail(s, call(sys_execve, (long)file, (long)argv, (long)envp, 0, 0, 0));
}

// prepare_command maps the strings of a command and makes room for pointers to them.
static const char *prepare_command(volatile struct state *s, const struct plan *p, const char *volatile **pointers)
{
	s->step = STEP_STRINGS;
	u64 room = ((u64)p->args + p->envs + p->files + 3) * sizeof(char *);
	*pointers = (const char *volatile *)must(s, call(sys_mmap, 0, (long)room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	return (const char *)must(s, call(sys_mmap, 0, (long)p->strings_size, PROT_READ, MAP_PRIVATE, p->strings, 0));
}

static void join_namespaces(volatile struct state *s, const struct plan *p)
{
	s->step = STEP_NAMESPACES;
	for (u32 i = 0; i < p->others; i++) {
		s->index = (s32)i;
		must(s, call(sys_setns, p->other[i].fd, p->other[i].kind, 0, 0, 0, 0));
	}
	must(s, call(sys_setns, p->pidfd, (long)p->namespaces, 0, 0, 0, 0));
}

// private_pid maps where the pid of the inner process is written. The inner process, which
// others may have in their hands, cannot write there: it has neither the page nor its file.
static volatile s32 *private_pid(volatile struct state *s)
{
	long at = must(s, call(sys_mmap, 0, sizeof(s32), PROT_READ | PROT_WRITE, MAP_SHARED, STATE, PID_AT));
	must(s, call(sys_madvise, at, sizeof(s32), MADV_DONTFORK, 0, 0, 0));
	must(s, call(sys_close, STATE, 0, 0, 0, 0, 0));
	return (volatile s32 *)at;
}

// start returns 0 when the program was executed.
static int start(volatile struct state *s, const struct plan *p)
{
	volatile s32 *own = private_pid(s);
	u64 args[8] = {CLONE_PARENT | CLONE_VFORK | CLONE_PARENT_SETTID, 0, 0, (u64)own, 0, 0, 0, 0};
	char buf[12];
	const char *strings = 0, *volatile *pointers = 0;
	if (p->mode == MODE_JOIN) {
		strings = prepare_command(s, p, &pointers);
		set_oom_score(s, p);
		set_apparmor(s, p);
		join_namespaces(s, p);
	} else {
		join(s, p);
		args[0] |= p->namespaces;
	}
	s->step = STEP_CLONE;
	long pid = must(s, call(sys_clone3, (long)args, sizeof args, 0, 0, 0, 0));
	if (pid == 0 && p->mode == MODE_JOIN)
		command(s, p, strings, pointers);
	if (pid == 0)
		inner(s, p);
	if (s->error || s->step != STEP_EXECUTE)
		return 1; // it failed, or was killed
	s->step = STEP_PID_FILE;
	char *text = decimal(buf, pid);
	write_all(s, p->pid_file, text, (u32)(buf + 12 - text));
	return 0;
}

// let_go lets a process run on, with the signal that it has stopped for; 0 for none.
static void let_go(const struct plan *p, u32 status)
{
	call(sys_ptrace, PTRACE_DETACH, p->take, 0, status >> 16 ? 0 : status >> 8 & 0xff, 0, 0);
}

// take copies the oldest filter of a process, which must be stopped for that. If this process
// has none itself, that is the runtime's: it was there before the container's program was.
static void take(volatile struct state *s, const struct plan *p)
{
	u64 filter[4096];
	u32 status = 0;
	s->step = STEP_TRACE;
	if (call(sys_prctl, PR_GET_SECCOMP, 0, 0, 0, 0, 0) != 0)
		fail(s, -EINVAL);
	must(s, call(sys_ptrace, PTRACE_SEIZE, p->take, 0, 0, 0, 0));
	must(s, call(sys_ptrace, PTRACE_INTERRUPT, p->take, 0, 0, 0, 0));
	must(s, call(sys_wait4, p->take, (long)&status, WALL, 0, 0, 0));
	if ((status & 0xff) != 0x7f)
		fail(s, -ENOENT);
	s->step = STEP_TAKE;
	long n = call(sys_ptrace, PTRACE_SECCOMP_GET_FILTER, p->take, 0, 0, 0, 0);
	if (n > 4096)
		n = -EINVAL;
	if (n > 0)
		n = call(sys_ptrace, PTRACE_SECCOMP_GET_FILTER, p->take, 0, (long)filter, 0, 0);
	let_go(p, status);
	write_all(s, p->out, (const char *)filter, (u32)must(s, n) * 8);
}

__attribute__((noreturn)) void _start(void)
{
	call(sys_prctl, PR_SET_DUMPABLE, 0, 0, 0, 0, 0);
	reset_signals();
	volatile struct state *s =
		(volatile struct state *)call(sys_mmap, 0, sizeof *s, PROT_READ | PROT_WRITE, MAP_SHARED, STATE, 0);
	if ((u64)s > -4096UL)
		leave(1);
	s->step = STEP_PLAN;
	const struct plan *p = (const struct plan *)must(s, call(sys_mmap, 0, sizeof *p, PROT_READ, MAP_PRIVATE, PLAN, 0));
	if (p->size != sizeof *p)
		fail(s, -EBADMSG);
	if (p->mode == MODE_TAKE) {
		take(s, p);
		leave(0);
	}
	leave(start(s, p));
}
