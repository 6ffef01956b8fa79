package shim

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/runtimeshim/cgroup"
	"github.com/cribox/cribox/runtimeshim/procfd"
	"github.com/cribox/cribox/runtimeshim/statedir"
)

// The kernel counts the processes of a cgroup that it killed because memory ran out, but does not
// say which. One may have been a child long ago, which left its parent unharmed. So kills that were
// counted before a SIGKILL of our own are not the reason of the task's end. We write down that
// count before we send the signal.

// oomMark is the file oom of a task: the number of OOM kills that are not the reason of its end.
type oomMark struct {
	Kills uint64 `json:"kills"`
}

// markOOM discounts the OOM kills so far, unless the task's process is already dying. It must be
// called before every SIGKILL to that process.
func (p *reporter) markOOM(t *task) {
	p.table.mu.Lock()
	file, base, pid, done := t.rec.OOMFile, t.rec.OOMBase, t.livePid(), t.exit != nil
	p.table.mu.Unlock()
	kills, err := cgroup.OOMKills(file)
	if err != nil {
		log.L.WithError(err).WithField("container", t.dir.ID()).
			Warn("cannot read the OOM counter; a kill by cribox may be reported as OOMKilled")
	}
	if err != nil || done || kills <= base || pid == 0 || dying(pid) {
		return
	}
	if err := statedir.WriteJSON(t.dir.Oom(), oomMark{kills}); err != nil {
		log.L.WithError(err).WithField("container", t.dir.ID()).
			Warn("cannot save the OOM counter; if the shim dies now, a kill by cribox may be reported as OOMKilled")
	}
	p.table.mu.Lock()
	defer p.table.mu.Unlock()
	t.rec.OOMBase = max(t.rec.OOMBase, kills)
}

// oomBase returns the OOM kill count above which a kill is the reason of the task's end.
func oomBase(rec statedir.Record, d statedir.Task) (uint64, error) {
	var m oomMark
	if err := statedir.ReadJSON(d.Oom(), &m); err != nil && !errdefs.IsNotFound(err) && !errdefs.IsDataLoss(err) {
		return 0, err
	}
	return max(rec.OOMBase, m.Kills), nil
}

// dying reports whether a process has a pending SIGKILL or is already exiting (proc(5)).
func dying(pid int) bool {
	st, err := procfd.ReadStat(pid)
	if procfd.Gone(err) || err == nil && (st.State == 'Z' || st.State == 'X' || st.Exiting) {
		return true
	}
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return procfd.Gone(err)
	}
	for line := range strings.Lines(string(raw)) {
		name, value, _ := strings.Cut(line, ":")
		if name != "SigPnd" && name != "ShdPnd" {
			continue
		}
		if set, err := strconv.ParseUint(strings.TrimSpace(value), 16, 64); err == nil && set&(1<<(unix.SIGKILL-1)) != 0 {
			return true
		}
	}
	return false
}
