package cli

import (
	"context"
	"io"

	"github.com/spf13/cobra"

	"github.com/cribox/cribox/config"
)

// PodOptions are the flags and arguments of the commands about pods.
type PodOptions struct {
	Call
	Once bool // print once, and do not wait for keys
}

// PodRun is what a command about pods does.
type PodRun func(context.Context, config.Config, PodOptions, io.Writer) error

func whyCommand(run PodRun) *cobra.Command {
	c, _ := withCall(run, one("name"), &cobra.Command{
		Use:   "why NAME",
		Short: "tell what a pod, a container or a pull has done, and what it waits for",
		Long: `Tell the story of a pod, a container or a pull: each step with its time and its error, and the
step that it is in. NAME is an ID or its beginning, the name of a pod with or without its
namespace, or an image. What was removed of late is told of, too: a pod that failed to start is
removed at once, and its successor has another ID.

The daemon remembers steps in memory. After a restart it knows what the records say: when
something was made, started and ended, and how.`,
		Example: `  cribox why default/web
  cribox why 3f2a5c8e0b1d
  cribox why docker.io/library/nginx:1.29`,
	})
	return c
}

func debtCommand(run PodRun) *cobra.Command {
	c, _ := withCall(run, noArguments, &cobra.Command{
		Use:   "debt",
		Short: "list what the daemon has to do yet, and tries again",
		Long: `List what is still owed: networks of pods that are gone, removals and starts that failed and are
tried again, processes that do not end, records that cannot be read, and what was removed but
still takes space. On a healthy node, nothing is owed for long.`,
		Example: `  cribox debt
  cribox debt --json | jq length`,
	})
	return c
}

func topCommand(run PodRun) *cobra.Command {
	c, o := withCall(run, noArguments, &cobra.Command{
		Use:   "top",
		Short: "show what pods and containers use: CPU, memory, disks, and how long they are stalled",
		Long: `Show what pods and containers use now, those that use most first: processors, memory that cannot
be reclaimed at once, bytes read from and written to disks, and the percentage of the last ten
seconds in which some process waited for a processor, for memory or for a disk (PSI; "-" where
the kernel does not tell, as with cgroup v1).

On a terminal it is drawn each second until q is pressed; c, m and i sort by CPU, memory and
disks. Elsewhere, and with --once, it is printed once.`,
		Example: `  cribox top
  cribox top --once | head`,
	})
	c.Flags().BoolVar(&o.Once, "once", false, "print once")
	return c
}
