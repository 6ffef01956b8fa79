package crictltests

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	created = cri.ContainerEventType_CONTAINER_CREATED_EVENT
	started = cri.ContainerEventType_CONTAINER_STARTED_EVENT
	stopped = cri.ContainerEventType_CONTAINER_STOPPED_EVENT
	deleted = cri.ContainerEventType_CONTAINER_DELETED_EVENT
)

// subscriber reads a stream of events.
type subscriber struct {
	*daemon
	stream grpc.ServerStreamingClient[cri.ContainerEventResponse]
}

// subscribe returns when the daemon has begun to send: nothing that happens from here on is missed.
func (d *daemon) subscribe() *subscriber {
	d.Helper()
	s, err := d.trySubscribe(d.runtime)
	d.must(err)
	return s
}

func (d *daemon) trySubscribe(from cri.RuntimeServiceClient) (*subscriber, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute) // bounds a hang
	d.Cleanup(cancel)
	stream, err := from.GetContainerEvents(ctx, &cri.GetEventsRequest{})
	if err != nil {
		return nil, err
	}
	if header, err := stream.Header(); err != nil || len(header) == 0 {
		_, err = stream.Recv()
		return nil, err
	}
	return &subscriber{daemon: d, stream: stream}, nil
}

func (s *subscriber) next() *cri.ContainerEventResponse {
	s.Helper()
	e, err := s.stream.Recv()
	s.must(err)
	return e
}

// want reads as many events and compares them; each is a type and an id.
func (s *subscriber) want(events ...any) {
	s.Helper()
	for i := 0; i < len(events); i += 2 {
		e := s.next()
		if e.ContainerEventType != events[i] || e.ContainerId != events[i+1] {
			s.Fatalf("event %d is %s of %s, want %s of %s", i/2, e.ContainerEventType, e.ContainerId, events[i], events[i+1])
		}
		s.wantTrue(e)
	}
}

// wantTrue holds an event against what the daemon answers now: its state has come about, and whatever has, stays.
func (s *subscriber) wantTrue(e *cri.ContainerEventResponse) {
	s.Helper()
	about := fmt.Sprintf("%s of %s", e.ContainerEventType, e.ContainerId)
	if e.CreatedAt == 0 || e.PodSandboxStatus.GetMetadata().GetUid() == "" {
		s.Errorf("%s says too little: %v", about, e)
	}
	inside := slices.IndexFunc(e.ContainersStatuses, func(c *cri.ContainerStatus) bool { return c.Id == e.ContainerId })
	ctx := context.Background()
	if e.PodSandboxStatus.GetId() == e.ContainerId {
		r, err := s.runtime.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: e.ContainerId})
		gone := status.Code(err) == codes.NotFound
		ready := e.PodSandboxStatus.State == cri.PodSandboxState_SANDBOX_READY
		now := err == nil && r.Status.State == cri.PodSandboxState_SANDBOX_READY
		switch e.ContainerEventType {
		case created, started:
			s.must(unless(ready && (err == nil || gone), "%s: it says %s, now %v %v", about, e.PodSandboxStatus.State, r, err))
		case stopped:
			s.must(unless(!ready && !now && (err == nil || gone), "%s: it says %s, now %v %v", about, e.PodSandboxStatus.State, r, err))
		case deleted:
			s.must(unless(gone && !ready, "%s: it says %s, now %v %v", about, e.PodSandboxStatus.State, r, err))
		}
		return
	}
	r, err := s.runtime.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: e.ContainerId})
	gone := status.Code(err) == codes.NotFound
	if e.ContainerEventType == deleted {
		s.must(unless(gone && inside < 0, "%s: it is still there: %v", about, e))
		return
	}
	if err != nil && !gone || inside < 0 {
		s.Fatalf("%s: %v; what it says of the containers: %v", about, err, e.ContainersStatuses)
	}
	least := map[cri.ContainerEventType]cri.ContainerState{created: cri.ContainerState_CONTAINER_CREATED, started: cri.ContainerState_CONTAINER_RUNNING,
		stopped: cri.ContainerState_CONTAINER_EXITED}[e.ContainerEventType]
	if told := e.ContainersStatuses[inside].State; told < least || !gone && r.Status.State < told {
		s.Errorf("%s: it says %s, and now it is %s", about, told, r.GetStatus().GetState())
	}
}

// TestEvents: every change is told once, in order, to everybody, after it can be asked for.
func TestEvents(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	all := []*subscriber{d.subscribe(), d.subscribe()}
	want := func(events ...any) {
		t.Helper()
		for _, s := range all {
			s.want(events...)
		}
	}
	p := d.runPod()
	want(created, p.id, started, p.id)
	short := p.create(shell("exit 7"))
	want(created, short.id)
	short.start()
	want(started, short.id, stopped, short.id)
	short.remove()
	want(deleted, short.id)
	long, never, broken := p.run(idle()), p.create(idle()), p.create(running("/no/such/program"))
	want(created, long.id, started, long.id, created, never.id, created, broken.id)
	if broken.tryStart() == nil {
		t.Fatal("a program that is not there was started")
	}
	want(stopped, broken.id)
	never.remove()
	want(deleted, never.id)
	if _, err := p.tryCreate(p.containerConfig(running("x"), with(func(c *cri.ContainerConfig) { c.Image.Image = "nothing:1" }))); err == nil {
		t.Fatal("a container was made of no image")
	}
	p.stop()
	want(stopped, long.id, stopped, p.id)
	p.stop()
	broken.remove()
	want(deleted, broken.id)
	p.remove()
	want(deleted, long.id, deleted, p.id)
	other := d.runPod(onHostNetwork)
	inside := other.run(idle())
	want(created, other.id, started, other.id, created, inside.id, started, inside.id)
	other.remove() // without a stop
	want(stopped, inside.id, stopped, other.id, deleted, inside.id, deleted, other.id)
}

// TestEventsOfDeaths: nobody has to ask before a death is told.
func TestEventsOfDeaths(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	p := d.runPod()
	c := p.run(idle())
	s := d.subscribe()
	c.must(c.kill())
	s.want(stopped, c.id)
	pause := d.processesOf(p.id)
	if len(pause) != 1 {
		t.Fatalf("the pod has %d processes: %v", len(pause), pause)
	}
	d.must(syscall.Kill(pause[0].Pid, syscall.SIGKILL))
	s.want(stopped, p.id)
	p.stop() // tells nothing new
	p.remove()
	s.want(deleted, c.id, deleted, p.id)
}

// TestEventsAfterKill: a daemon that comes after a killed one tells what it finds out, or lists it already.
func TestEventsAfterKill(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	p := d.runPod(onHostNetwork)
	stopping, steady := p.run(shell("trap 'echo got it' TERM; echo ready; while :; do usleep 10000; done")), p.run(idle())
	stopping.waitLog("ready")
	old := d.subscribe()
	ctx, cancel := context.WithCancel(context.Background())
	asked := make(chan struct{})
	go func() {
		defer close(asked)
		_, _ = d.runtime.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: stopping.id, Timeout: 2}) // is cut
	}()
	stopping.waitLog("got it")
	d.kill()
	cancel()
	<-asked
	var err error
	for err == nil { // the container's end comes before, when the machine was slower than its grace
		_, err = old.stream.Recv()
	}
	wantCode(t, err, codes.Unavailable)
	d.start()
	s := d.subscribe()
	if stopping.status().State != cri.ContainerState_CONTAINER_EXITED {
		s.want(stopped, stopping.id)
	}
	d.must(steady.kill())
	for e := s.next(); e.ContainerId != steady.id; { // it may have been told of the other one beside
		e = s.next()
	}
}

// TestEventsEndWithTheDaemon: a daemon that ends says so to its subscribers.
func TestEventsEndWithTheDaemon(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	s, unread := d.subscribe(), d.subscribe()
	p := d.runPod(onHostNetwork)
	s.want(created, p.id, started, p.id)
	d.stop()
	_, err := s.stream.Recv()
	wantCode(t, err, codes.Unavailable, "ending")
	for err = nil; err == nil; { // what was not sent yet is not told any more
		_, err = unread.stream.Recv()
	}
	wantCode(t, err, codes.Unavailable, "ending")
	d.start()
}

// TestEventsSlowSubscriber: who does not read is told that events are missing and costs the others nothing; nothing is left out before that.
func TestEventsSlowSubscriber(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	conn, err := grpc.NewClient("unix://"+d.socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithInitialWindowSize(64<<10), grpc.WithInitialConnWindowSize(64<<10))
	d.must(err)
	defer conn.Close()
	asleep, err := d.trySubscribe(cri.NewRuntimeServiceClient(conn))
	d.must(err)
	awake := d.subscribe()
	var read sync.WaitGroup
	var all []string
	read.Go(func() {
		for {
			e, err := awake.stream.Recv()
			if err != nil {
				t.Errorf("who reads was cut off: %v", err)
				return
			}
			all = append(all, e.ContainerEventType.String()+" "+e.ContainerId)
			if e.ContainerId == e.PodSandboxStatus.GetId() && e.ContainerEventType == deleted {
				return
			}
		}
	})
	// Events are so large that few of them are on the way.
	p := d.runPod(onHostNetwork, func(c *cri.PodSandboxConfig) { c.Annotations["heavy"] = strings.Repeat("x", 100<<10) })
	var made atomic.Int64
	var makers sync.WaitGroup
	for range 8 {
		config := p.containerConfig(idle())
		makers.Go(func() {
			for !strings.Contains(lastLines(d.logFile(), 50), "ResourceExhausted") {
				c, err := p.tryCreate(config)
				if err == nil {
					_, err = d.runtime.RemoveContainer(context.Background(), &cri.RemoveContainerRequest{ContainerId: c.id})
				}
				if n := made.Add(1); err != nil || n > 2000 {
					t.Errorf("%d events wait, and nobody was cut off; %v", 2*n, err)
					return
				}
			}
		})
	}
	makers.Wait()
	p.remove()
	read.Wait()
	if want := 2*int(made.Load()) + 4; len(all) != want {
		t.Errorf("who reads got %d events, want %d", len(all), want)
	}
	got := 0
	for ; ; got++ {
		e, err := asleep.stream.Recv()
		if err != nil {
			wantCode(t, err, codes.ResourceExhausted, "list")
			break
		}
		if one := e.ContainerEventType.String() + " " + e.ContainerId; got >= len(all) || one != all[got] {
			t.Fatalf("event %d is %s: one was left out without a word", got, one)
		}
	}
	if got >= len(all) {
		t.Errorf("all %d events came, and an error after them", got)
	}
	again, err := d.trySubscribe(cri.NewRuntimeServiceClient(conn))
	d.must(err)
	after := d.runPod(onHostNetwork)
	again.want(created, after.id, started, after.id)
}

// TestEventsClientLeaves: a subscriber that leaves is forgotten, and its end is no warning.
func TestEventsClientLeaves(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	ctx, cancel := context.WithCancel(context.Background())
	stream, err := d.runtime.GetContainerEvents(ctx, &cri.GetEventsRequest{})
	d.must(err)
	_, err = stream.Header()
	d.must(err)
	cancel()
	eventually(t, "the end of the stream in the log", func() error {
		log := lastLines(d.logFile(), 50)
		return unless(strings.Contains(log, "call=GetContainerEvents"), "it says: %s", log)
	})
	if log := lastLines(d.logFile(), 50); strings.Contains(log, "level=warning") && strings.Contains(log, "Canceled") {
		t.Errorf("a subscriber that left is a warning:\n%s", log)
	}
	if _, err := stream.Recv(); err == nil || err == io.EOF {
		t.Errorf("a stream that was cancelled ended with %v", err)
	}
}
