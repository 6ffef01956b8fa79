// Command compare measures cribox beside containerd and prints a table. hack/compare.sh starts it, in
// namespaces of its own, which end with it: whatever happens, no process, mount or link is left.
//
//	compare -bin DIR -work DIR -cgroup NAME -pause FILE [-out DIR] [-rounds N] [-pods N] [-plugins]
//
// Both runtimes get the same runc, images, pause program and requests, and a network that does the
// same. They are measured in turn. The requests are those of a kubelet, sent over gRPC.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/cribox/cribox/crictl-tests/fixture"
)

// options are the flags.
type options struct {
	bin, work, cgroup, pause string
	out                      string
	rounds, pods             int
	plugins                  bool
	only                     string
}

func main() {
	var o options
	flag.StringVar(&o.bin, "bin", "bin", "folder of cribox, containerd/, runc and cni/")
	flag.StringVar(&o.work, "work", "", "empty folder for everything that is written to a disk")
	flag.StringVar(&o.cgroup, "cgroup", "", "name of a new cgroup, below which all runs")
	flag.StringVar(&o.pause, "pause", "", "the pause program, for containerd's pause image; cribox has it built in")
	flag.BoolVar(&o.plugins, "plugins", false,
		"run the same network plugins for both, instead of cribox's default network")
	flag.StringVar(&o.out, "out", "", "folder for a page with the table and a picture; none without it")
	flag.IntVar(&o.rounds, "rounds", 3, "how often each runtime is measured")
	flag.IntVar(&o.pods, "pods", 40, "pods that run together")
	flag.StringVar(&o.only, "only", "", "measure only this: pod, pods, pulls, files or logs; together with an empty -out")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) error {
	registry, err := fixture.Start(ctx, fixture.Options{Addr: "127.0.0.1:0"})
	if err != nil {
		return err
	}
	defer registry.Close()
	certs := filepath.Join(o.work, "certs.d")
	if err := registry.WriteCertsD(certs); err != nil {
		return err
	}
	if err := addPause(registry, o.pause); err != nil {
		return err
	}
	var runtimes []*runtime
	for i, k := range kinds {
		r, err := newRuntime(o, k, i, certs, registry.Ref(pauseImage))
		if err != nil {
			return err
		}
		runtimes = append(runtimes, r)
		defer r.end()
		if err := r.begin(ctx, registry.Ref("busybox:1")); err != nil {
			return r.explain(err)
		}
	}
	if err := measureAll(ctx, runtimes, o, certs); err != nil {
		return err
	}
	report(os.Stdout, runtimes, o)
	if o.out == "" {
		return nil
	}
	return save(o.out, runtimes, o)
}

// measureAll measures the runtimes in turn. The order changes with each round, so that what the
// machine does meanwhile favours nobody.
func measureAll(ctx context.Context, runtimes []*runtime, o options, certs string) error {
	for n := range o.rounds {
		if err := measureRound(ctx, runtimes, o, certs, n); err != nil {
			return err
		}
	}
	return nil
}

func measureRound(ctx context.Context, runtimes []*runtime, o options, certs string, n int) error {
	registry, images, err := serveImages(ctx, certs, n)
	if err != nil {
		return err
	}
	defer registry.Close()
	for i := range runtimes {
		r := runtimes[(i+n)%len(runtimes)]
		fmt.Fprintf(os.Stderr, "    round %d of %d: %s\n", n+1, o.rounds, r.name)
		if err := r.measure(ctx, o, images); err != nil {
			return r.explain(err)
		}
	}
	return nil
}

const pauseImage = "compare-pause:1"

// addPause serves an image whose command is cribox's pause program.
func addPause(registry *fixture.Registry, file string) error {
	program, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	image, err := fixture.Custom(v1.Config{Entrypoint: []string{"/pause"}},
		[]fixture.Entry{{Name: "pause", Mode: 0o555, Data: program}})
	if err != nil {
		return err
	}
	return registry.Add(pauseImage, image)
}
