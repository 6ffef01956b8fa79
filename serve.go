package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/containerd/log"
	"github.com/distribution/reference"

	"github.com/cribox/cribox/cni"
	"github.com/cribox/cribox/imageservice"
	"github.com/cribox/cribox/runtimeshim"
	"github.com/cribox/cribox/sandbox"
	"github.com/cribox/cribox/server"
)

// lastWord is how long requests under way may take once the daemon was told to end. What they do goes on after a restart.
const lastWord = 10 * time.Second

// serve runs the daemon until ctx ends.
func serve(ctx context.Context, c Config, _ io.Writer) error {
	syscall.Umask(0o022)
	hangup := make(chan os.Signal, 1) // from now on it does not end us
	signal.Notify(hangup, syscall.SIGHUP)
	defer signal.Stop(hangup)
	manager := newNotifier()
	var inEffect atomic.Pointer[Config]
	asked := c
	inEffect.Store(&asked)
	if _, err := c.systemdCgroup(sandbox.SystemdRuns()); err != nil {
		return err
	}
	unlock, err := lockFolders(&c)
	if err != nil {
		return err
	}
	defer unlock()
	listener, err := listen(c.socket())
	if err != nil {
		return err
	}
	streams, err := server.ListenStreams()
	if err != nil {
		return errors.Join(err, listener.Close())
	}
	start := time.Now()
	s := server.New(versionString(), streams)
	served := make(chan error, 1)
	go func() { served <- s.Serve(listener) }()

	pods, images, err := openRooms(ctx, c)
	if err != nil {
		return errors.Join(err, listener.Close())
	}
	s.Open(pods, images, func() any { return inEffect.Load().values() })
	log.G(ctx).WithField("took", time.Since(start).Round(time.Millisecond).String()).Infof("cribox %s serves %s, root %s, state %s", versionString(), c.Listen, c.Root, c.State)
	manager.ready(ctx)
	select {
	case err = <-served:
	case <-reloads(ctx, hangup, manager, &inEffect, pods, images):
		manager.stopping(ctx)
		log.G(ctx).Info("ending; containers go on")
		bye, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastWord)
		s.Stop(bye)
		cancel()
	}
	return errors.Join(err, pods.Close())
}

// openRooms wires the rooms together.
func openRooms(ctx context.Context, c Config) (*sandbox.Manager, *imageservice.Images, error) {
	images, err := imageservice.Open(ctx, imageservice.Config{
		Root: c.Root, RegistryConfig: c.Images.RegistryConfig, Pinned: pinned(c), Step: step,
		MaxDownloads: int(c.Images.Downloads), MaxUnpacks: int(c.Images.Unpacks), StallTimeout: time.Duration(c.Images.StallTime),
		Limits: imageservice.Limits{
			LayerBytes: int64(c.Images.LayerSizeMax), ImageBytes: int64(c.Images.ImageSizeMax), Entries: c.Images.LayerFilesMax,
			Reserve: int(c.Images.DiskReserve),
		},
	})
	if err != nil {
		return nil, nil, err
	}
	network, err := openNetwork(ctx, c, c.instance())
	if err != nil {
		return nil, nil, err
	}
	systemd, err := c.systemdCgroup(sandbox.SystemdRuns())
	if err != nil {
		return nil, nil, err
	}
	pods, err := sandbox.Open(ctx, sandbox.Config{
		Root: c.Root, State: c.State, Instance: c.instance(), Images: images, Network: network,
		Shim:     runtimeshim.Config{State: c.State, LogLevel: c.LogLevel, Scope: c.scopes(sandbox.SystemdRuns()), Step: step},
		Handlers: handlers(c), Default: c.DefaultRuntime, Pause: c.PauseImage, SystemdCgroup: systemd, Step: step,
		CDISpecDirs: c.CDISpecDirs, SELinux: c.Containers.SELinux,
	})
	return pods, images, err
}

// pinned returns the names of the images that a kubelet should not collect: without its pause image no pod starts.
func pinned(c Config) (names []string) {
	for _, name := range slices.Concat(c.Images.Pinned, []string{c.PauseImage}) {
		if ref, err := reference.ParseDockerRef(name); err == nil { // not one with a star
			name = ref.String()
		}
		if name != "" {
			names = append(names, name)
		}
	}
	return names
}

func openNetwork(ctx context.Context, c Config, instance string) (*cni.Networks, error) {
	keep, err := c.Network.noMasquerade()
	if err != nil {
		return nil, err
	}
	return cni.Open(ctx, cni.Config{ConfDir: c.Network.ConfDir, BinDirs: c.Network.BinDirs, Default: c.Network.Default, Subnet: c.Network.Subnet, NoMasquerade: keep,
		Instance: instance, Root: c.Root, State: c.State, Step: step})
}

// program returns the absolute path of a runtime; a name that PATH does not have stays, and the condition RuntimeReady tells.
func program(name string) string {
	if filepath.IsAbs(name) {
		return name
	}
	if path, err := exec.LookPath(name); err == nil {
		return path
	}
	return filepath.Join("/usr/bin", name)
}

// listen makes the socket, in place of one that a killed daemon left. Only root can connect.
func listen(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	if info, err := os.Lstat(path); err == nil {
		if info.Mode().Type() != os.ModeSocket {
			return nil, fmt.Errorf("socket: %s exists and is no socket", path)
		}
		if conn, err := net.DialTimeout("unix", path, time.Second); err == nil {
			conn.Close()
			return nil, fmt.Errorf("socket: %s is served by another process", path)
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

// shim is the parent of every container.
func shim(ctx context.Context, c Config, _ io.Writer) error {
	return runtimeshim.ShimMain(ctx, c.State, nil)
}

// logger writes the containers' logs. A hangup of everybody named cribox is meant for the daemon.
func logger(ctx context.Context, c Config, _ io.Writer) error {
	signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP)
	return runtimeshim.LoggerMain(ctx, c.State, nil)
}

// shutdown ends what outlives the daemon, when nothing runs any more.
func shutdown(ctx context.Context, c Config, out io.Writer) error {
	unlock, err := lockFolders(&c)
	if err != nil {
		return fmt.Errorf("stop the daemon first: %w", err)
	}
	defer unlock()
	client, err := runtimeshim.Connect(ctx, runtimeshim.Config{State: c.State, LogLevel: c.LogLevel})
	if err != nil {
		return err
	}
	if err := errors.Join(client.Shutdown(ctx), client.Close()); err != nil {
		return err
	}
	network, err := openNetwork(ctx, c, c.instance())
	if err != nil {
		return err
	}
	if err := errors.Join(network.RemoveDefault(ctx), sandbox.RemoveCgroupParent(ctx, c.instance())); err != nil {
		return err
	}
	_, err = fmt.Fprintf(out, "nothing of %s runs any more\n", c.State)
	return err
}
