package lifecycle

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

	"github.com/cribox/cribox/crictl-tests/harness"
)

const (
	created = cri.ContainerEventType_CONTAINER_CREATED_EVENT
	started = cri.ContainerEventType_CONTAINER_STARTED_EVENT
	stopped = cri.ContainerEventType_CONTAINER_STOPPED_EVENT
	deleted = cri.ContainerEventType_CONTAINER_DELETED_EVENT
)

// subscriber reads a stream of events.
type subscriber struct {
	*harness.Daemon
	stream grpc.ServerStreamingClient[cri.ContainerEventResponse]
}

// subscribe returns when the daemon has begun to send: nothing that happens from here on is missed.
func subscribe(d *harness.Daemon) *subscriber {
	d.Helper()
	s, err := trySubscribe(d, d.Runtime)
	d.Must(err)
	return s
}

func trySubscribe(d *harness.Daemon, from cri.RuntimeServiceClient) (*subscriber, error) {
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
	return &subscriber{Daemon: d, stream: stream}, nil
}

func (s *subscriber) next() *cri.ContainerEventResponse {
	s.Helper()
	e, err := s.stream.Recv()
	s.Must(err)
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
		r, err := s.Runtime.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: e.ContainerId})
		gone := status.Code(err) == codes.NotFound
		ready := e.PodSandboxStatus.State == cri.PodSandboxState_SANDBOX_READY
		now := err == nil && r.Status.State == cri.PodSandboxState_SANDBOX_READY
		switch e.ContainerEventType {
		case created, started:
			s.Must(harness.Unless(ready && (err == nil || gone), "%s: it says %s, now %v %v", about, e.PodSandboxStatus.State, r, err))
		case stopped:
			s.Must(harness.Unless(!ready && !now && (err == nil || gone), "%s: it says %s, now %v %v", about, e.PodSandboxStatus.State, r, err))
		case deleted:
			s.Must(harness.Unless(gone && !ready, "%s: it says %s, now %v %v", about, e.PodSandboxStatus.State, r, err))
		}
		return
	}
	r, err := s.Runtime.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: e.ContainerId})
	gone := status.Code(err) == codes.NotFound
	if e.ContainerEventType == deleted {
		s.Must(harness.Unless(gone && inside < 0, "%s: it is still there: %v", about, e))
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
	d := harness.NewDaemon(t)
	all := []*subscriber{subscribe(d), subscribe(d)}
	want := func(events ...any) {
		t.Helper()
		for _, s := range all {
			s.want(events...)
		}
	}
	p := d.RunPod()
	want(created, p.ID, started, p.ID)
	short := p.Create(harness.Shell("exit 7"))
	want(created, short.ID)
	short.Start()
	want(started, short.ID, stopped, short.ID)
	short.Remove()
	want(deleted, short.ID)
	long, never, broken := p.Run(harness.Idle()), p.Create(harness.Idle()), p.Create(harness.Running("/no/such/program"))
	want(created, long.ID, started, long.ID, created, never.ID, created, broken.ID)
	if broken.TryStart() == nil {
		t.Fatal("a program that is not there was started")
	}
	want(stopped, broken.ID)
	never.Remove()
	want(deleted, never.ID)
	if _, err := p.TryCreate(p.ContainerConfig(harness.Running("x"), harness.With(func(c *cri.ContainerConfig) { c.Image.Image = "nothing:1" }))); err == nil {
		t.Fatal("a container was made of no image")
	}
	p.Stop()
	want(stopped, long.ID, stopped, p.ID)
	p.Stop()
	broken.Remove()
	want(deleted, broken.ID)
	p.Remove()
	want(deleted, long.ID, deleted, p.ID)
	other := d.RunPod(harness.OnHostNetwork)
	inside := other.Run(harness.Idle())
	want(created, other.ID, started, other.ID, created, inside.ID, started, inside.ID)
	other.Remove() // without a stop
	want(stopped, inside.ID, stopped, other.ID, deleted, inside.ID, deleted, other.ID)
}

// TestEventsOfDeaths: nobody has to ask before a death is told.
func TestEventsOfDeaths(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	p := d.RunPod()
	c := p.Run(harness.Idle())
	s := subscribe(d)
	c.Must(c.Kill())
	s.want(stopped, c.ID)
	pause := d.ProcessesOf(p.ID)
	if len(pause) != 1 {
		t.Fatalf("the pod has %d processes: %v", len(pause), pause)
	}
	d.Must(syscall.Kill(pause[0].Pid, syscall.SIGKILL))
	s.want(stopped, p.ID)
	p.Stop() // tells nothing new
	p.Remove()
	s.want(deleted, c.ID, deleted, p.ID)
}

// TestEventsAfterKill: a daemon that comes after a killed one tells what it finds out, or lists it already.
func TestEventsAfterKill(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	p := d.RunPod(harness.OnHostNetwork)
	stopping, steady := p.Run(harness.Shell("trap 'echo got it' TERM; echo ready; while :; do usleep 10000; done")), p.Run(harness.Idle())
	stopping.WaitLog("ready")
	old := subscribe(d)
	ctx, cancel := context.WithCancel(context.Background())
	asked := make(chan struct{})
	go func() {
		defer close(asked)
		_, _ = d.Runtime.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: stopping.ID, Timeout: 2}) // is cut
	}()
	stopping.WaitLog("got it")
	d.Kill()
	cancel()
	<-asked
	var err error
	for err == nil { // the container's end comes before, when the machine was slower than its grace
		_, err = old.stream.Recv()
	}
	harness.WantCode(t, err, codes.Unavailable)
	d.Start()
	s := subscribe(d)
	if stopping.Status().State != cri.ContainerState_CONTAINER_EXITED {
		s.want(stopped, stopping.ID)
	}
	d.Must(steady.Kill())
	for e := s.next(); e.ContainerId != steady.ID; { // it may have been told of the other one beside
		e = s.next()
	}
}

// TestEventsEndWithTheDaemon: a daemon that ends says so to its subscribers.
func TestEventsEndWithTheDaemon(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	s, unread := subscribe(d), subscribe(d)
	p := d.RunPod(harness.OnHostNetwork)
	s.want(created, p.ID, started, p.ID)
	d.Stop()
	_, err := s.stream.Recv()
	harness.WantCode(t, err, codes.Unavailable, "shutting down")
	for err = nil; err == nil; { // what was not sent yet is not told any more
		_, err = unread.stream.Recv()
	}
	harness.WantCode(t, err, codes.Unavailable, "shutting down")
	d.Start()
}

// TestEventsSlowSubscriber: who does not read is told that events are missing and costs the others nothing; nothing is left out before that.
func TestEventsSlowSubscriber(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	conn, err := grpc.NewClient("unix://"+d.Socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithInitialWindowSize(64<<10), grpc.WithInitialConnWindowSize(64<<10))
	d.Must(err)
	defer conn.Close()
	asleep, err := trySubscribe(d, cri.NewRuntimeServiceClient(conn))
	d.Must(err)
	awake := subscribe(d)
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
	p := d.RunPod(harness.OnHostNetwork, func(c *cri.PodSandboxConfig) { c.Annotations["heavy"] = strings.Repeat("x", 100<<10) })
	var made atomic.Int64
	var makers sync.WaitGroup
	for range 8 {
		config := p.ContainerConfig(harness.Idle())
		makers.Go(func() {
			for !strings.Contains(harness.LastLines(d.LogFile(), 50), "ResourceExhausted") {
				c, err := p.TryCreate(config)
				if err == nil {
					_, err = d.Runtime.RemoveContainer(context.Background(), &cri.RemoveContainerRequest{ContainerId: c.ID})
				}
				if n := made.Add(1); err != nil || n > 2000 {
					t.Errorf("%d events wait, and nobody was cut off; %v", 2*n, err)
					return
				}
			}
		})
	}
	makers.Wait()
	p.Remove()
	read.Wait()
	if want := 2*int(made.Load()) + 4; len(all) != want {
		t.Errorf("who reads got %d events, want %d", len(all), want)
	}
	got := 0
	for ; ; got++ {
		e, err := asleep.stream.Recv()
		if err != nil {
			harness.WantCode(t, err, codes.ResourceExhausted, "list")
			break
		}
		if one := e.ContainerEventType.String() + " " + e.ContainerId; got >= len(all) || one != all[got] {
			t.Fatalf("event %d is %s: one was left out without a word", got, one)
		}
	}
	if got >= len(all) {
		t.Errorf("all %d events came, and an error after them", got)
	}
	again, err := trySubscribe(d, cri.NewRuntimeServiceClient(conn))
	d.Must(err)
	after := d.RunPod(harness.OnHostNetwork)
	again.want(created, after.ID, started, after.ID)
}

// TestEventsClientLeaves: a subscriber that leaves is forgotten, and its end is no warning.
func TestEventsClientLeaves(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	ctx, cancel := context.WithCancel(context.Background())
	stream, err := d.Runtime.GetContainerEvents(ctx, &cri.GetEventsRequest{})
	d.Must(err)
	_, err = stream.Header()
	d.Must(err)
	cancel()
	harness.Eventually(t, "the end of the stream in the log", func() error {
		log := harness.LastLines(d.LogFile(), 50)
		return harness.Unless(strings.Contains(log, "call=GetContainerEvents"), "it says: %s", log)
	})
	if log := harness.LastLines(d.LogFile(), 50); strings.Contains(log, "level=warning") && strings.Contains(log, "Canceled") {
		t.Errorf("a subscriber that left is a warning:\n%s", log)
	}
	if _, err := stream.Recv(); err == nil || err == io.EOF {
		t.Errorf("a stream that was cancelled ended with %v", err)
	}
}
