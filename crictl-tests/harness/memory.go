package harness

import (
	"fmt"
	"os"
	"strings"
)

// Resident is a number of bytes in the status of the daemon's process: VmRSS, which it has, or VmHWM,
// the most that it has had at once.
func (d *Daemon) Resident(field string) int64 {
	d.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", d.Process.PID()))
	d.Must(err)
	for line := range strings.Lines(string(data)) {
		var kib int64
		if _, err := fmt.Sscanf(line, field+":\t%d kB", &kib); err == nil {
			return kib << 10
		}
	}
	d.Fatalf("no %s in the status of the daemon", field)
	return 0
}

// PeakOf runs do and returns by how many bytes the daemon's memory grew at most meanwhile.
func (d *Daemon) PeakOf(do func()) int64 {
	d.Helper()
	d.Must(os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", d.Process.PID()), []byte("5"), 0)) // the peak begins again
	before := d.Resident("VmRSS")
	do()
	return d.Resident("VmHWM") - before
}
