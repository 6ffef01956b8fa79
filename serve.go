package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/containerd/log"

	"github.com/cribox/cribox/cni"
	"github.com/cribox/cribox/config"
	"github.com/cribox/cribox/imageservice"
	"github.com/cribox/cribox/internal/activity"
	"github.com/cribox/cribox/runtimeshim"
	"github.com/cribox/cribox/runtimeshim/client"
	"github.com/cribox/cribox/runtimeshim/oci"
	"github.com/cribox/cribox/sandbox"
	"github.com/cribox/cribox/server"
	"github.com/cribox/cribox/server/admin"
	"github.com/cribox/cribox/server/streaming"
)

// lastWord is how long requests in progress may take after the daemon was asked to end. Recovery
// continues their work after a restart.
const lastWord = 10 * time.Second

// serve runs the daemon until ctx ends. Containers keep running when it returns.
func serve(ctx context.Context, c config.Config, _ io.Writer) error {
	syscall.Umask(0o022)
	hangup := make(chan os.Signal, 1) // from here on a SIGHUP does not end this process
	signal.Notify(hangup, syscall.SIGHUP)
	defer signal.Stop(hangup)
	manager := newNotifier()
	var inEffect atomic.Pointer[config.Config]
	now := c
	inEffect.Store(&now)
	if _, err := c.SystemdCgroup(sandbox.SystemdRuns()); err != nil {
		return err
	}
	unlock, err := lockFolders(&c)
	if err != nil {
		return err
	}
	defer unlock()
	listener, err := listen(c.Socket())
	if err != nil {
		return err
	}
	commands, err := listen(c.AdminSocket())
	if err != nil {
		return errors.Join(err, listener.Close())
	}
	streams, err := streaming.Listen()
	if err != nil {
		return errors.Join(err, listener.Close(), commands.Close())
	}
	ctx, observed, err := observe(ctx, c)
	if err != nil {
		return errors.Join(err, listener.Close(), commands.Close(), streams.Close())
	}
	defer observed.close(ctx)
	start := time.Now()
	s, asked := server.New(versionString(), streams, observed.requests(), observed.options()...), admin.New()
	served := make(chan error, 2)
	go func() { served <- s.Serve(listener) }()
	go func() { served <- asked.Serve(commands) }()

	pods, images, err := openPackages(ctx, c)
	if err != nil {
		return errors.Join(err, listener.Close(), commands.Close())
	}
	loadArchives := importArchives(ctx, c, images)
	asked.Open(images, pods)
	s.Open(pods, images, func() any { return inEffect.Load().Values() })
	observed.open(ctx, s, pods)
	log.G(ctx).WithField("took", time.Since(start).Round(time.Millisecond).String()).
		Infof("cribox %s serves %s, root %s, state %s", versionString(), c.Listen, c.Root, c.State)
	manager.ready(ctx)
	defer begin(ctx, loadArchives)()
	select {
	case err = <-served:
	case <-reloads(ctx, hangup, manager, &inEffect, pods, images):
		manager.stopping(ctx)
		log.G(ctx).Info("stopping; containers keep running")
		stopServers(ctx, s, asked)
	}
	return errors.Join(err, pods.Close())
}

// begin starts work beside the caller. end cancels it, and waits until it is done.
func begin(ctx context.Context, work func(context.Context)) (end func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() { work(ctx); close(done) }()
	return func() { cancel(); <-done }
}

// stopServers ends both servers, and gives their requests lastWord.
func stopServers(ctx context.Context, s *server.Server, asked *admin.Server) {
	bye, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastWord)
	defer cancel()
	both := make(chan struct{})
	go func() { asked.Stop(bye); close(both) }()
	s.Stop(bye)
	<-both
}

// openPackages opens the image store, the network and the pods, each with its part of the
// configuration.
func openPackages(ctx context.Context, c config.Config) (*sandbox.Manager, *imageservice.Images, error) {
	doing := activity.New()
	images, err := imageservice.Open(ctx, imageservice.Config{
		Activity: doing,
		Root:     c.Root, RegistryConfig: c.Images.RegistryConfig,
		Credentials: c.Images.Credentials, HelpersDir: c.Images.HelpersDir,
		SignaturePolicy: c.Images.SignaturePolicy, Pinned: c.PinnedImages(), Step: steps,
		MaxDownloads: int(c.Images.Downloads), MaxUnpacks: int(c.Images.Unpacks),
		StallTimeout: time.Duration(c.Images.StallTime),
		Limits: imageservice.Limits{
			LayerBytes: int64(c.Images.LayerSizeMax), ImageBytes: int64(c.Images.ImageSizeMax), Entries: c.Images.LayerFilesMax,
			Reserve: int(c.Images.DiskReserve),
		},
	})
	if err != nil {
		return nil, nil, err
	}
	network, err := openNetwork(ctx, c)
	if err != nil {
		return nil, nil, err
	}
	systemd, err := c.SystemdCgroup(sandbox.SystemdRuns())
	if err != nil {
		return nil, nil, err
	}
	pods, err := sandbox.Open(ctx, sandbox.Config{
		Activity: doing,
		Root:     c.Root, State: c.State, Instance: c.Instance(), Images: images, Network: network,
		Connect: connector(client.Config{State: c.State, LogLevel: c.LogLevel, Scope: c.Scopes(sandbox.SystemdRuns()),
			Step: steps}),
		Features: oci.AskFeatures,
		Handlers: handlers(c), Default: c.DefaultRuntime, Pause: c.PauseImage, SystemdCgroup: systemd, Step: steps,
		CDISpecDirs: c.CDISpecDirs, SELinux: c.Containers.SELinux, Layers: imageservice.LayersFolder(c.Root),
	})
	return pods, images, err
}

// connector returns a function that connects to the shim and the logger, and starts them if needed.
func connector(c client.Config) func(context.Context, func(runtimeshim.Task)) (sandbox.Runtime, error) {
	return func(ctx context.Context, onExit func(runtimeshim.Task)) (sandbox.Runtime, error) {
		c.OnExit = onExit
		return connect(ctx, c)
	}
}

func openNetwork(ctx context.Context, c config.Config) (*cni.Networks, error) {
	wanted, err := c.CNI()
	if err != nil {
		return nil, err
	}
	wanted.Step = steps
	return cni.Open(ctx, wanted)
}

// handlers returns the runtime handlers of the configuration, by name.
func handlers(c config.Config) map[string]sandbox.Handler {
	all := map[string]sandbox.Handler{}
	for name, r := range c.Runtimes {
		all[name] = sandbox.Handler{
			Path: r.Program(), Rlimits: c.Rlimits(r), PidsLimit: c.Containers.PidsLimit,
			LogLimit: int64(c.Containers.LogSizeMax),
			ShmSize:  int64(cmp.Or(r.ShmSize, c.Containers.ShmSize)),
			Ports:    c.Containers.UnprivilegedPorts, Ping: c.Containers.UnprivilegedPing,
			MissingPaths: sandbox.MissingPaths{
				Refuse: c.Containers.HostPathMissing == config.PathRefuse, Never: c.Containers.HostPathNever,
			},
			NoHostDevices: r.PrivilegedWithoutHostDevices,
			NativePause:   c.Pause == config.Native,
			NativeExec:    c.Exec == config.Native,
		}
	}
	return all
}

// listen creates the CRI socket with mode 0600. It replaces a socket that a killed daemon left, and
// returns an error if another process serves on it.
func listen(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	if info, err := os.Lstat(path); err == nil {
		if info.Mode().Type() != os.ModeSocket {
			return nil, fmt.Errorf("socket: %s exists and is not a socket", path)
		}
		if conn, err := net.DialTimeout("unix", path, time.Second); err == nil {
			conn.Close()
			return nil, fmt.Errorf("socket: %s is in use by another process", path)
		}
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("socket: %w", err)
		}
	}
	old := syscall.Umask(0o177)
	l, err := net.Listen("unix", path)
	syscall.Umask(old)
	if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	return l, nil
}
