package harness

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Cribox is a command of the daemon's own binary, with the daemon's configuration.
func (d *Daemon) Cribox(args ...string) *exec.Cmd {
	return Command("cribox", append(args, "--config", d.ConfigFile())...)
}

// Said runs the command with this input and returns what it printed, the errors apart.
func (d *Daemon) Said(in io.Reader, args ...string) (out, errs string, err error) {
	cmd := d.Cribox(args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = in, &stdout, &stderr
	err = cmd.Run()
	return stdout.String(), stderr.String(), err
}

// OnTerminal runs the command on a terminal of 100 columns, and returns what it drew.
func (d *Daemon) OnTerminal(args ...string) string { return d.Pressing("", "", args...) }

// Pressing is OnTerminal, and presses keys once the command has drawn a text.
func (d *Daemon) Pressing(keys, after string, args ...string) string {
	d.Helper()
	master, slave := d.terminal()
	defer master.Close()
	cmd := d.Cribox(args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	d.Must(cmd.Start())
	slave.Close()
	var drawn bytes.Buffer
	for b, pressed := make([]byte, 4096), keys == ""; ; {
		n, err := master.Read(b) // ends with EIO when nobody has the terminal any more
		drawn.Write(b[:n])
		if err != nil {
			break
		}
		if !pressed && strings.Contains(drawn.String(), after) {
			pressed = true
			_, err := io.WriteString(master, keys)
			d.Must(err)
		}
	}
	if err := cmd.Wait(); err != nil {
		d.Fatalf("%v: %v\n%s", cmd.Args, err, drawn.String())
	}
	return drawn.String()
}

func (d *Daemon) terminal() (master, slave *os.File) {
	d.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	d.Must(err)
	fd := int(master.Fd())
	d.Must(unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0))
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	d.Must(err)
	d.Must(unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: 100}))
	slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	d.Must(err)
	return master, slave
}
