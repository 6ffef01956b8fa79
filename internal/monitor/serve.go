package monitor

import (
	"context"
	"errors"
	"net"
	"net/http"
	"time"

	"github.com/containerd/log"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/cribox/cribox/internal/guard"
)

const (
	headerTime = 10 * time.Second // for a client to send the head of a request
	answerTime = time.Minute      // for a client to read an answer
	maxScrapes = 4                // at once
)

// Server serves the numbers over HTTP: the daemon's own at /metrics, those of containers at
// /metrics/cadvisor, as a kubelet does.
type Server struct{ http *http.Server }

// NewServer returns a Server. containers returns the metrics of containers.
func (m *Monitor) NewServer(ctx context.Context, containers prometheus.GathererFunc) *Server {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", m.handler(ctx, m.registry))
	mux.Handle("GET /metrics/cadvisor", m.handler(ctx, containers))
	return &Server{&http.Server{Handler: mux, ReadHeaderTimeout: headerTime, WriteTimeout: answerTime}}
}

// handler serves what one Gatherer returns. If a part of it is missing, the rest is served.
func (m *Monitor) handler(ctx context.Context, from prometheus.Gatherer) http.Handler {
	h := promhttp.HandlerFor(from, promhttp.HandlerOpts{
		ErrorHandling: promhttp.ContinueOnError, MaxRequestsInFlight: maxScrapes, ErrorLog: errorLog{ctx},
	})
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		guard.Run(req.Context(), "a scrape of "+req.URL.Path, func() { h.ServeHTTP(w, req) })
	})
}

type errorLog struct{ ctx context.Context }

func (l errorLog) Println(v ...any) { log.G(l.ctx).Warn(v...) }

// Serve answers scrapes on l until Stop.
func (s *Server) Serve(l net.Listener) error {
	if err := s.http.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// Stop ends the server, and cuts off scrapes in progress.
func (s *Server) Stop() { _ = s.http.Close() }
