package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errhttp"
	"github.com/opencontainers/go-digest"

	"github.com/cribox/cribox/imageservice"
	"github.com/cribox/cribox/internal/guard"
	"github.com/cribox/cribox/sandbox"
)

const (
	headerTime = 10 * time.Second       // for a client to send the head of a request
	tick       = 200 * time.Millisecond // between two lines about progress
	maxRequest = 64 << 10               // bytes of JSON
)

// Server serves the socket.
type Server struct {
	http  *http.Server
	parts atomic.Pointer[parts] // nil until Open
}

// New returns a Server that answers every request with 503 until Open is called.
func New() *Server {
	s := &Server{}
	mux := http.NewServeMux()
	mux.Handle("GET /v1/images", s.answer(s.list))
	mux.Handle("GET /v1/images/{name}", s.answer(s.inspect))
	mux.Handle("DELETE /v1/images/{name}", s.answer(s.remove))
	mux.Handle("GET /v1/pulls", s.answer(s.pulls))
	mux.Handle("POST /v1/pull", s.answer(s.pull))
	mux.Handle("POST /v1/load", s.answer(s.load))
	mux.Handle("POST /v1/take", s.answer(s.take))
	mux.Handle("GET /v1/save", s.answer(s.save))
	mux.Handle("PUT /v1/pins/{name}", s.answer(s.pin))
	mux.Handle("DELETE /v1/pins/{name}", s.answer(s.unpin))
	mux.Handle("POST /v1/prune", s.answer(s.prune))
	mux.Handle("POST /v1/verify", s.answer(s.verify))
	mux.Handle("GET /v1/why/{name}", s.answerPods(s.why))
	mux.Handle("GET /v1/top", s.answerPods(s.top))
	mux.Handle("GET /v1/debts", s.with(s.debts))
	s.http = &http.Server{Handler: mux, ReadHeaderTimeout: headerTime}
	return s
}

// Open lets the Server answer requests.
func (s *Server) Open(images *imageservice.Images, pods *sandbox.Manager) {
	s.parts.Store(&parts{images, pods})
}

// parts are what the Server asks.
type parts struct {
	images *imageservice.Images
	pods   *sandbox.Manager
}

// Serve answers requests on l until Stop.
func (s *Server) Serve(l net.Listener) error {
	if err := s.http.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// Stop waits for requests in progress until ctx ends, and then cuts them off.
func (s *Server) Stop(ctx context.Context) {
	if s.http.Shutdown(ctx) != nil {
		_ = s.http.Close()
	}
}

// handler answers a request. An error before its first line is sent with its status.
type handler func(images *imageservice.Images, w http.ResponseWriter, req *http.Request) error

func (s *Server) answer(h handler) http.Handler {
	return s.with(func(p *parts, w http.ResponseWriter, req *http.Request) error { return h(p.images, w, req) })
}

// answerPods is answer for a question about pods.
func (s *Server) answerPods(h func(*sandbox.Manager, http.ResponseWriter, *http.Request) error) http.Handler {
	return s.with(func(p *parts, w http.ResponseWriter, req *http.Request) error { return h(p.pods, w, req) })
}

func (s *Server) with(h func(*parts, http.ResponseWriter, *http.Request) error) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		p := s.parts.Load()
		if p == nil {
			refuse(w, fmt.Errorf("cribox is starting: %w", errdefs.ErrUnavailable))
			return
		}
		err := guard.Call(req.Context(), req.Method+" "+req.URL.Path, func() error { return h(p, w, req) })
		if err != nil {
			refuse(w, err)
		}
	})
}

func refuse(w http.ResponseWriter, err error) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(errhttp.ToHTTP(err))
	_ = json.NewEncoder(w).Encode(Event{Error: err.Error(), Done: true}) // to a client that may be gone
}

func send(w http.ResponseWriter, v any) error {
	w.Header().Set("Content-Type", "application/json")
	return json.NewEncoder(w).Encode(v)
}

func (s *Server) list(images *imageservice.Images, w http.ResponseWriter, _ *http.Request) error {
	all := []Image{}
	for _, i := range images.List() {
		all = append(all, imageOf(i))
	}
	return send(w, all)
}

func (s *Server) inspect(images *imageservice.Images, w http.ResponseWriter, req *http.Request) error {
	found, err := images.Lookup(req.PathValue("name"))
	if err != nil {
		return err
	}
	image := imageOf(found)
	image.Config = &found.Config
	return send(w, image)
}

// remove is an error for an image that is not there: a person has made a mistake then.
func (s *Server) remove(images *imageservice.Images, w http.ResponseWriter, req *http.Request) error {
	name := req.PathValue("name")
	if _, err := images.Lookup(name); err != nil {
		return err
	}
	if err := images.Remove(req.Context(), name); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (s *Server) pulls(images *imageservice.Images, w http.ResponseWriter, _ *http.Request) error {
	return send(w, pullsOf(images, func(string) bool { return true }))
}

func pullsOf(images *imageservice.Images, match func(ref string) bool) []Pull {
	all := []Pull{}
	for _, p := range images.Pulls() {
		if match(p.Ref) {
			all = append(all, pullOf(p))
		}
	}
	return all
}

func (s *Server) pull(images *imageservice.Images, w http.ResponseWriter, req *http.Request) error {
	var ask PullRequest
	if err := decode(req, &ask); err != nil {
		return err
	}
	ref, err := imageservice.FullName(ask.Image)
	if err != nil {
		return err
	}
	auth := authOf(ask.Username, ask.Password)
	follow(w, req, func() Event { return Event{Pulls: pullsOf(images, func(r string) bool { return r == ref })} },
		func() (Event, error) {
			image, err := images.Pull(req.Context(), ref, auth)
			return result(err, image)
		})
	return nil
}

func decode(req *http.Request, v any) error {
	if err := json.NewDecoder(io.LimitReader(req.Body, maxRequest)).Decode(v); err != nil {
		return fmt.Errorf("request: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	return nil
}

func authOf(username, password string) *imageservice.Auth {
	if username == "" && password == "" {
		return nil
	}
	return &imageservice.Auth{Username: username, Password: password}
}

// result is the last line about images.
func result(err error, images ...imageservice.Image) (last Event, _ error) {
	for _, i := range images {
		if i.ID != "" {
			last.Images = append(last.Images, imageOf(i))
		}
	}
	return last, err
}

func (s *Server) load(images *imageservice.Images, w http.ResponseWriter, req *http.Request) error {
	body := &counted{r: req.Body}
	follow(w, req, func() Event { return Event{Received: body.n.Load()} },
		func() (Event, error) {
			loaded, err := images.Load(req.Context(), body, req.URL.Query().Get("name"))
			return result(err, loaded...)
		})
	return nil
}

// take copies an image that is on this machine. The client is root, and may read what the daemon may.
func (s *Server) take(images *imageservice.Images, w http.ResponseWriter, req *http.Request) error {
	var ask TakeRequest
	if err := decode(req, &ask); err != nil {
		return err
	}
	names := map[string]bool{}
	for _, name := range ask.Names {
		if full, err := imageservice.FullName(name); err == nil {
			names[full] = true
		}
	}
	follow(w, req, func() Event { return Event{Pulls: pullsOf(images, func(r string) bool { return names[r] })} },
		func() (Event, error) {
			image, err := images.TakeOver(req.Context(), imageservice.Stored{Folder: ask.Folder, Names: ask.Names,
				Digest: digest.Digest(ask.Digest), MediaType: ask.MediaType})
			return result(err, image)
		})
	return nil
}

// ErrorTrailer is the trailer of an archive that is not complete.
const ErrorTrailer = "Cribox-Error"

func (s *Server) save(images *imageservice.Images, w http.ResponseWriter, req *http.Request) error {
	export, err := images.Export(req.URL.Query()["name"])
	if err != nil {
		return err
	}
	defer export.Close()
	w.Header().Set("Content-Type", "application/x-tar")
	w.Header().Set("Trailer", ErrorTrailer)
	if err := export.Write(req.Context(), w); err != nil {
		w.Header().Set(ErrorTrailer, strings.ReplaceAll(err.Error(), "\n", "; "))
	}
	return nil
}

func (s *Server) pin(images *imageservice.Images, w http.ResponseWriter, req *http.Request) error {
	if err := images.Pin(req.PathValue("name")); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (s *Server) unpin(images *imageservice.Images, w http.ResponseWriter, req *http.Request) error {
	if err := images.Unpin(req.PathValue("name")); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (s *Server) prune(images *imageservice.Images, w http.ResponseWriter, req *http.Request) error {
	removed, err := images.Prune(req.Context(), req.URL.Query().Get("dry") == "true")
	if err != nil {
		return err
	}
	all := []Image{}
	for _, i := range removed {
		all = append(all, imageOf(i))
	}
	return send(w, all)
}

type counted struct {
	r io.Reader
	n atomic.Int64
}

func (c *counted) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	c.n.Add(int64(n))
	return n, err
}

// follow sends what progress returns from time to time while work runs, and then the last line, which
// work returns.
func follow(w http.ResponseWriter, req *http.Request, progress func() Event, work func() (Event, error)) {
	w.Header().Set("Content-Type", "application/x-ndjson")
	lines, control := json.NewEncoder(w), http.NewResponseController(w)
	_ = control.EnableFullDuplex() // the body of an archive is read meanwhile
	var last Event
	ended := make(chan error, 1)
	go func() {
		ended <- guard.Call(req.Context(), req.URL.Path, func() (err error) {
			last, err = work()
			return err
		})
	}()
	again := time.NewTicker(tick)
	defer again.Stop()
	for {
		select {
		case err := <-ended:
			last.Done = true
			if err != nil {
				last.Error = err.Error()
			}
			_ = lines.Encode(last) // to a client that may be gone
			return
		case <-again.C:
			_ = lines.Encode(progress()) // the same: then the context of work ends
			_ = control.Flush()
		}
	}
}
