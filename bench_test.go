package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/config"
)

const benchPods = 250

// BenchmarkNode measures frequent calls of a kubelet to a whole daemon in this process, with 250
// pods of one container each. fakeShim runs the tasks, so that no OCI runtime or network plugin is
// needed; everything else is real. The client does not decode responses, so that time and
// allocations are those of the daemon and the transport. cpu-ms is the processor time of one call,
// which does not depend on other processes. The pods use the host's network, so their interfaces
// are not read.
func BenchmarkNode(b *testing.B) {
	n := newNode(b)
	pods, containers := n.fill(benchPods)
	for _, call := range []struct {
		name string
		ask  func(i int) proto.Message
	}{
		{"ListPodSandbox", func(int) proto.Message { return &runtimeapi.ListPodSandboxRequest{} }},
		{"ListContainers", func(int) proto.Message { return &runtimeapi.ListContainersRequest{} }},
		{"StreamContainers", func(int) proto.Message { return &runtimeapi.StreamContainersRequest{} }},
		{"PodSandboxStatus", func(i int) proto.Message { return &runtimeapi.PodSandboxStatusRequest{PodSandboxId: pods[i%benchPods]} }},
		{"ContainerStatus", func(i int) proto.Message {
			return &runtimeapi.ContainerStatusRequest{ContainerId: containers[i%benchPods]}
		}},
		{"ExecSync", func(i int) proto.Message {
			return &runtimeapi.ExecSyncRequest{ContainerId: containers[i%benchPods], Cmd: []string{"true"}, Timeout: 10}
		}},
		{"ListContainerStats", func(int) proto.Message { return &runtimeapi.ListContainerStatsRequest{} }},
		{"ListPodSandboxStats", func(int) proto.Message { return &runtimeapi.ListPodSandboxStatsRequest{} }},
		{"ListPodSandboxMetrics", func(int) proto.Message { return &runtimeapi.ListPodSandboxMetricsRequest{} }},
	} {
		b.Run(call.name, func(b *testing.B) {
			b.ReportAllocs()
			size, i, before := 0, 0, ownCPU()
			for b.Loop() {
				size = n.ask(b, call.name, call.ask(i))
				i++
			}
			b.ReportMetric((ownCPU()-before).Seconds()*1000/float64(i), "cpu-ms")
			b.ReportMetric(float64(size), "reply-bytes")
		})
	}
}

// TestCallsToTheShim counts what shim and logger are asked for requests of a kubelet: each call is
// processor time of two processes.
func TestCallsToTheShim(t *testing.T) {
	n := newNode(t)
	pods, containers := n.fill(1)
	pod, container := pods[0], containers[0]
	ctx := context.Background()
	want := func(after string, err error, calls ...string) {
		t.Helper()
		must(t, err)
		if got := n.shim.takeAsked(); !slices.Equal(got, calls) {
			t.Errorf("%s asks for %q, want %q", after, got, calls)
		}
	}
	n.shim.takeAsked()
	_, err := n.runtime.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
	want("ListContainers", err)
	_, err = n.runtime.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: container})
	must(t, err)
	n.shim.awaitAsked("release " + container)
	n.shim.takeAsked()
	_, err = n.runtime.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: pod})
	want("StopPodSandbox", err, "delete "+pod, "end "+pod)
	_, err = n.runtime.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: pod})
	want("StopPodSandbox of a stopped pod", err)
	_, err = n.runtime.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: pod})
	want("RemovePodSandbox of a stopped pod", err, "delete "+container)
}

// TestAllocationsOfExecSync counts what a probe makes the daemon allocate, fakeShim and the client included.
func TestAllocationsOfExecSync(t *testing.T) {
	const rounds, most = 100, 400
	n := newNode(t)
	_, containers := n.fill(1)
	ask := func() {
		n.ask(t, "ExecSync", &runtimeapi.ExecSyncRequest{ContainerId: containers[0], Cmd: []string{"true"}, Timeout: 10})
	}
	ask() // whatever is made once is made
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range rounds {
		ask()
	}
	runtime.ReadMemStats(&after)
	each := float64(after.Mallocs-before.Mallocs) / rounds
	t.Logf("%.0f allocations of %.0f bytes", each, float64(after.TotalAlloc-before.TotalAlloc)/rounds)
	if each > most || each < 50 {
		t.Errorf("an ExecSync makes %.0f allocations, want at most %d", each, most)
	}
}

// node is a daemon in this process, with a client.
type node struct {
	testing.TB
	conn    *grpc.ClientConn
	runtime runtimeapi.RuntimeServiceClient
	shim    *fakeShim
	image   string
	cgroup  string   // parent of all cgroups
	roots   []string // folders that contain it
}

// nodes is how many daemons this process has started.
var nodes atomic.Int32

// newNode starts a daemon with the default configuration, which each edit changes.
func newNode(b testing.TB, edits ...func(*config.Config)) *node {
	if os.Geteuid() != 0 {
		b.Skip("needs root")
	}
	_ = log.SetLevel("error")
	c := config.Default()
	c.Root, c.State, c.CgroupDriver = b.TempDir(), b.TempDir(), config.DriverCgroupfs
	c.Listen = "unix://" + filepath.Join(c.State, "cribox.sock")
	c.Images.RegistryConfig, c.Network.ConfDir = filepath.Join(c.Root, "no-certs.d"), filepath.Join(c.Root, "no-net.d")
	for _, edit := range edits {
		edit(&c)
	}
	n := &node{TB: b}
	n.makeCgroups(fmt.Sprintf("/cribox-bench-%d-%d", os.Getpid(), nodes.Add(1)))
	n.shim = newFakeShim(b, c.State, n.roots)

	ctx, end := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- serve(ctx, c, io.Discard) }()
	b.Cleanup(func() {
		end()
		if err := <-ended; err != nil {
			b.Errorf("the daemon ended: %v", err)
		}
	})
	conn, err := grpc.NewClient(c.Listen, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.WaitForReady(true),
		grpc.MaxCallRecvMsgSize(16<<20)))
	must(b, err)
	b.Cleanup(func() { conn.Close() })
	n.conn, n.runtime = conn, runtimeapi.NewRuntimeServiceClient(conn)
	n.awaitOpen(ended)
	n.image = n.pull()
	return n
}

// awaitOpen waits until the daemon answers requests.
func (n *node) awaitOpen(ended <-chan error) {
	for {
		_, err := n.runtime.Version(context.Background(), &runtimeapi.VersionRequest{})
		if err == nil {
			return
		}
		select {
		case served := <-ended:
			n.Fatalf("the daemon ended: %v", served)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// makeCgroups creates a cgroup in every hierarchy from which statistics are read.
func (n *node) makeCgroups(name string) {
	const root = "/sys/fs/cgroup"
	n.cgroup, n.roots = name, []string{root}
	if _, err := os.Stat(filepath.Join(root, "cgroup.controllers")); err != nil {
		n.roots = nil
		for _, controller := range []string{"cpu", "cpuacct", "memory", "pids", "blkio"} {
			n.roots = append(n.roots, filepath.Join(root, controller))
		}
	}
	n.mkdir(name)
}

// mkdir creates a cgroup, and removes it when the test ends.
func (n *node) mkdir(name string) {
	for _, root := range n.roots {
		dir := filepath.Join(root, name)
		if err := os.Mkdir(dir, 0o755); err != nil {
			n.Skipf("cannot make a cgroup: %v", err)
		}
		n.Cleanup(func() {
			if err := os.Remove(dir); err != nil {
				n.Error(err)
			}
		})
		if filepath.Dir(root) != "/sys/fs" { // cgroup v1
			continue
		}
		control := filepath.Join(dir, "cgroup.subtree_control")
		must(n, os.WriteFile(control, []byte("+cpu +memory +pids +io"), 0))
	}
}

// pull pulls an image with one empty folder from a registry in this process.
func (n *node) pull() string {
	content := map[string][]byte{}
	put := func(mediaType string, b []byte) ocispec.Descriptor {
		d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
		content[d.Digest.String()] = b
		return d
	}
	asJSON := func(v any) []byte {
		raw, err := json.Marshal(v)
		must(n, err)
		return raw
	}
	var plain, packed bytes.Buffer
	w := tar.NewWriter(&plain)
	must(n, w.WriteHeader(&tar.Header{Name: "tmp/", Typeflag: tar.TypeDir, Mode: 0o755}))
	must(n, w.Close())
	z := gzip.NewWriter(&packed)
	_, err := z.Write(plain.Bytes())
	must(n, errors.Join(err, z.Close()))
	manifest := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest,
		Config: put(ocispec.MediaTypeImageConfig, asJSON(ocispec.Image{
			Platform: ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH}, Config: ocispec.ImageConfig{Cmd: []string{"/idle"}},
			RootFS: ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{digest.FromBytes(plain.Bytes())}}})),
		Layers: []ocispec.Descriptor{put(ocispec.MediaTypeImageLayerGzip, packed.Bytes())}}
	manifest.SchemaVersion = 2
	top := put(manifest.MediaType, asJSON(manifest))
	content["1"] = content[top.Digest.String()]
	registry := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, ok := content[filepath.Base(r.URL.Path)]
		if !ok {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("Docker-Content-Digest", digest.FromBytes(b).String())
		if strings.Contains(r.URL.Path, "/manifests/") {
			w.Header().Set("Content-Type", top.MediaType)
		}
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(b))
	}))
	defer registry.Close()
	name := strings.TrimPrefix(registry.URL, "http://") + "/bench:1"
	_, err = runtimeapi.NewImageServiceClient(n.conn).PullImage(context.Background(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: name}})
	must(n, err)
	return name
}

// fill runs pods with one container each, with the requests of a kubelet, and returns the IDs of
// both. It removes them when the test ends.
func (n *node) fill(count int) (pods, containers []string) {
	pods, containers = make([]string, count), make([]string, count)
	for i := range count {
		n.mkdir(n.podCgroup(i))
	}
	n.Cleanup(func() {
		n.atOnce(count, func(i int) error {
			_, err := n.runtime.RemovePodSandbox(context.Background(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: pods[i]})
			return err
		})
	})
	n.atOnce(count, func(i int) error {
		var err error
		pods[i], containers[i], err = n.runPod(i)
		return err
	})
	return pods, containers
}

func (n *node) podCgroup(i int) string { return fmt.Sprintf("%s/pod%d", n.cgroup, i) }

func (n *node) runPod(i int) (pod, container string, err error) {
	ctx := context.Background()
	name, uid := fmt.Sprintf("web-7d4b9c6f5d-%05d", i), fmt.Sprintf("6c1f4a52-3b1e-4d4e-9a53-%012d", i)
	labels := map[string]string{"io.kubernetes.pod.name": name, "io.kubernetes.pod.namespace": "default", "io.kubernetes.pod.uid": uid}
	options := &runtimeapi.NamespaceOption{Network: runtimeapi.NamespaceMode_NODE, Ipc: runtimeapi.NamespaceMode_NODE}
	config := &runtimeapi.PodSandboxConfig{
		Metadata:    &runtimeapi.PodSandboxMetadata{Name: name, Namespace: "default", Uid: uid},
		Labels:      with(labels, "app", "web", "pod-template-hash", "7d4b9c6f5d"),
		Annotations: map[string]string{"kubernetes.io/config.seen": "2026-01-02T03:04:05.678901234Z", "kubernetes.io/config.source": "api"},
		Linux: &runtimeapi.LinuxPodSandboxConfig{CgroupParent: n.podCgroup(i),
			SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: options}},
	}
	p, err := n.runtime.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: config})
	if err != nil {
		return "", "", err
	}
	c, err := n.runtime.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: p.PodSandboxId, SandboxConfig: config,
		Config: &runtimeapi.ContainerConfig{
			Metadata: &runtimeapi.ContainerMetadata{Name: "web"},
			Image:    &runtimeapi.ImageSpec{Image: n.image},
			Labels:   with(labels, "io.kubernetes.container.name", "web"),
			Annotations: map[string]string{"io.kubernetes.container.hash": "8f4a1c2e", "io.kubernetes.container.restartCount": "0",
				"io.kubernetes.container.terminationMessagePath": "/dev/termination-log", "io.kubernetes.container.terminationMessagePolicy": "File",
				"io.kubernetes.pod.terminationGracePeriod": "30"},
			Linux: &runtimeapi.LinuxContainerConfig{Resources: &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 128 << 20, CpuShares: 102},
				SecurityContext: &runtimeapi.LinuxContainerSecurityContext{NamespaceOptions: options}},
		}})
	if err != nil {
		return p.PodSandboxId, "", err
	}
	_, err = n.runtime.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: c.ContainerId})
	return p.PodSandboxId, c.ContainerId, err
}

// atOnce calls act with 0..count-1, ten in parallel.
func (n *node) atOnce(count int, act func(i int) error) {
	var all sync.WaitGroup
	slots := make(chan struct{}, 10)
	errs := make([]error, count)
	for i := range count {
		slots <- struct{}{}
		all.Go(func() {
			defer func() { <-slots }()
			errs[i] = act(i)
		})
	}
	all.Wait()
	if err := errors.Join(errs...); err != nil {
		n.Fatal(err)
	}
}

// ask makes a call, and returns the number of bytes in the response, which it does not decode.
func (n *node) ask(t testing.TB, call string, req proto.Message) (size int) {
	stream, err := n.conn.NewStream(context.Background(), &grpc.StreamDesc{ServerStreams: true}, "/runtime.v1.RuntimeService/"+call,
		grpc.ForceCodec(undecoded{}))
	must(t, err)
	must(t, errors.Join(stream.SendMsg(req), stream.CloseSend()))
	for {
		var got int
		err := stream.RecvMsg(&got)
		if errors.Is(err, io.EOF) {
			return size
		}
		must(t, err)
		size += got
	}
}

// undecoded is a codec that encodes requests and returns only the size of responses.
type undecoded struct{}

func (undecoded) Name() string                  { return "proto" }
func (undecoded) Marshal(v any) ([]byte, error) { return proto.Marshal(v.(proto.Message)) }
func (undecoded) Unmarshal(b []byte, v any) error {
	*v.(*int) = len(b)
	return nil
}

func with(labels map[string]string, more ...string) map[string]string {
	all := map[string]string{}
	for k, v := range labels {
		all[k] = v
	}
	for i := 0; i < len(more); i += 2 {
		all[more[i]] = more[i+1]
	}
	return all
}

// ownCPU returns the processor time of this process.
func ownCPU() time.Duration {
	var u unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
