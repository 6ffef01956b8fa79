package place

import (
	"fmt"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/runtimeshim/systemd"
)

// deviceRule allows every process of a container to use a device.
type deviceRule struct {
	kind         byte // 'b' or 'c'
	major, minor int  // -1 = any
	access       string
}

const (
	anyNumber = -1
	all       = "rwm" // read, write, make the node
)

// everybodysDevices is what runc allows to every container: to make any device node, and to use
// null, zero, full, tty, random, urandom, terminals and tun. In the order in which runc looks for
// them.
var everybodysDevices = []deviceRule{
	{'b', anyNumber, anyNumber, "m"}, {'c', anyNumber, anyNumber, "m"},
	{'c', 1, 3, all}, {'c', 1, 5, all}, {'c', 1, 7, all}, {'c', 1, 8, all}, {'c', 1, 9, all},
	{'c', 5, 0, all}, {'c', 5, 2, all}, {'c', 10, 200, all}, {'c', 136, anyNumber, all},
}

// String returns the rule as the devices controller of version 1 writes it.
func (r deviceRule) String() string {
	return fmt.Sprintf("%c %s:%s %s", r.kind, number(r.major), number(r.minor), r.access)
}

func number(n int) string {
	if n == anyNumber {
		return "*"
	}
	return strconv.Itoa(n)
}

// forSystemd returns the rule as an entry of DeviceAllow=.
func (r deviceRule) forSystemd() systemd.Device {
	kind := map[byte]string{'b': "block", 'c': "char"}[r.kind]
	path := kind + "-" + number(r.major)
	if r.minor != anyNumber {
		path = fmt.Sprintf("/dev/%s/%d:%d", kind, r.major, r.minor)
	}
	return systemd.Device{Path: path, Access: r.access}
}

// instruction is struct bpf_insn of linux/bpf.h.
type instruction struct {
	code, registers uint8 // the registers: source << 4 | destination
	offset          int16
	immediate       int32
}

// The registers of the program, after it has read what is asked for.
const (
	r0 = iota // the answer
	r1        // a struct bpf_cgroup_dev_ctx, and then whatever
	r2        // the kind of device
	r3        // read, write, make
	r4        // the major number
	r5        // the minor number
)

// deviceProgram returns the program of a cgroup of version 2 that allows everybody's devices and no
// others, instruction by instruction what runc loads.
func deviceProgram() []instruction {
	load := func(to uint8, offset int16) instruction {
		return instruction{unix.BPF_LDX | unix.BPF_MEM | unix.BPF_W, r1<<4 | to, offset, 0}
	}
	code := []instruction{
		load(r2, 0), {unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, r2, 0, 0xffff},
		load(r3, 0), {unix.BPF_ALU | unix.BPF_RSH | unix.BPF_K, r3, 0, 16},
		load(r4, 4),
		load(r5, 8),
	}
	for _, rule := range everybodysDevices {
		code = append(code, rule.block()...)
	}
	return append(code, leave(0)...)
}

// leave ends the program with an answer.
func leave(with int32) []instruction {
	return []instruction{
		{unix.BPF_ALU | unix.BPF_MOV | unix.BPF_K, r0, 0, with},
		{unix.BPF_JMP | unix.BPF_EXIT, 0, 0, 0},
	}
}

// block answers yes if the rule allows what is asked for. Otherwise the program goes on behind it.
func (r deviceRule) block() []instruction {
	unless := func(register uint8, value int) instruction {
		return instruction{unix.BPF_JMP | unix.BPF_JNE | unix.BPF_K, register, 0, int32(value)}
	}
	kinds := map[byte]int{'b': unix.BPF_DEVCG_DEV_BLOCK, 'c': unix.BPF_DEVCG_DEV_CHAR}
	code := []instruction{unless(r2, kinds[r.kind])}
	if r.access != all {
		code = append(code,
			instruction{unix.BPF_ALU | unix.BPF_MOV | unix.BPF_X, r3<<4 | r1, 0, 0},
			instruction{unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, r1, 0, accessBits(r.access)},
			instruction{unix.BPF_JMP | unix.BPF_JNE | unix.BPF_X, r3<<4 | r1, 0, 0})
	}
	if r.major != anyNumber {
		code = append(code, unless(r4, r.major))
	}
	if r.minor != anyNumber {
		code = append(code, unless(r5, r.minor))
	}
	code = append(code, leave(1)...)
	for i := range code {
		if code[i].code&^unix.BPF_X == unix.BPF_JMP|unix.BPF_JNE {
			code[i].offset = int16(len(code) - i - 1)
		}
	}
	return code
}

func accessBits(access string) (bits int32) {
	letters := map[rune]int32{'r': unix.BPF_DEVCG_ACC_READ, 'w': unix.BPF_DEVCG_ACC_WRITE, 'm': unix.BPF_DEVCG_ACC_MKNOD}
	for _, letter := range access {
		bits |= letters[letter]
	}
	return bits
}
