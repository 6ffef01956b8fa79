package imageservice

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/errdefs"
)

const (
	maxAttempts    = 5 // per request and host
	maxRedirects   = 10
	maxRetryAfter  = 60 * time.Second
	mirrorPatience = 4 * time.Second  // to the first byte of a host that has another behind it
	deadFor        = 30 * time.Second // a mirror that could not be reached is left out for so long
)

// registry asks the hosts that serve one repository, mirrors first, the registry itself last, as hosts.toml says.
type registry struct {
	target
	hosts []*host
	conns []*http.Transport
	prog  *progress
	idle  time.Duration // a connection that moves nothing for so long is dropped; the request is tried again
	dead  *deadHosts
}

// request is one GET or HEAD below a repository.
type request struct {
	method  string
	kind    string // "manifests" or "blobs"
	object  string // tag or digest
	accept  string
	offset  int64
	resolve bool // only hosts trusted to say what a tag is
}

func (q request) String() string { return strings.TrimSuffix(q.kind, "s") + " " + q.object }

// do sends q to the hosts in turn and returns the first good answer. The caller closes its body. The error is that of the last host
// asked, which is the registry itself, with what the mirrors said added to its text.
func (r *registry) do(ctx context.Context, q request) (*reply, error) {
	need := docker.HostCapabilityPull
	if q.resolve {
		need |= docker.HostCapabilityResolve
	}
	var hosts []*host
	for i, h := range r.hosts {
		if h.Capabilities.Has(need) && (i == len(r.hosts)-1 || !r.failing(h)) {
			hosts = append(hosts, h)
		}
	}
	var asides []string
	for i, h := range hosts {
		last := i == len(hosts)-1
		resp, err := r.ask(ctx, h, q, last)
		switch {
		case err == nil:
			return resp, nil
		case ctx.Err() != nil:
			return nil, context.Cause(ctx)
		case !last:
			asides = append(asides, err.Error())
		case len(asides) > 0:
			return nil, fmt.Errorf("%w (before that: %s)", err, strings.Join(asides, "; "))
		default:
			return nil, err
		}
	}
	return nil, fmt.Errorf("no host is configured to serve %s of %s: %w", q, r.repository(), errdefs.ErrNotFound)
}

// failing tells mirrors that are left out for a while.
func (r *registry) failing(h *host) bool {
	return h.failures.Load() >= 2 || r.dead.is(h.origin())
}

// ask tries one host, the last one patiently, the others only as long as there is no sign of trouble.
func (r *registry) ask(ctx context.Context, h *host, q request, last bool) (*reply, error) {
	var err error
	for attempt := 1; ; attempt++ {
		var resp *reply
		resp, err = r.authorized(ctx, h, q, last)
		if err == nil && resp.StatusCode < 300 {
			return resp, nil
		}
		wait := backoff(attempt)
		if err == nil {
			err, wait = failure(h, q, resp, wait)
		} else if transport(err) {
			h.failures.Add(1)
			r.dead.add(h.origin())
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if !last || attempt == maxAttempts || wait > maxRetryAfter || !transient(err) {
			return nil, err
		}
		if err := r.prog.waiting(func() error { return sleep(ctx, wait) }); err != nil {
			return nil, err
		}
	}
}

// failure turns a bad answer into an error and the time to wait before another try.
func failure(h *host, q request, resp *reply, wait time.Duration) (error, time.Duration) {
	defer resp.Body.Close()
	body, _ := io.ReadAll(io.LimitReader(resp.Body, maxErrorBody))
	se := &statusError{code: resp.StatusCode, server: h.origin(), what: q.String(), detail: errorDetail(body)}
	if !busy(resp.StatusCode) {
		return se, wait
	}
	if after := retryAfter(resp.Header.Get("Retry-After"), time.Now()); after > 0 {
		wait = after
		if after > maxRetryAfter {
			return unavailable{fmt.Errorf("%w; it asks to come back after %s", se, after.Round(time.Second))}, wait
		}
	}
	return unavailable{se}, wait
}

// transient errors are worth another try.
func transient(err error) bool {
	var u unavailable
	return errors.As(err, &u) && !hopeless(err)
}

// transport errors are those without an answer.
func transport(err error) bool {
	var u unavailable
	var se *statusError
	return errors.As(err, &u) && !errors.As(err, &se)
}

// authorized sends q with what authorization there is and answers challenges of the host itself: twice at most, the first because we
// came without, the second because a token may have expired.
func (r *registry) authorized(ctx context.Context, h *host, q request, last bool) (*reply, error) {
	for try := 0; ; try++ {
		used := h.auth.current()
		resp, err := r.follow(ctx, h, q, used, last)
		if err != nil {
			return nil, err
		}
		if resp.StatusCode != http.StatusUnauthorized || try == 2 || resp.foreign {
			return resp, nil
		}
		resp.Body.Close()
		if err := h.auth.challenge(ctx, resp.Header, used); err != nil {
			return nil, err
		}
	}
}

// reply is an answer whose body counts progress and ends when the peer goes silent.
type reply struct {
	*http.Response
	host    *host
	foreign bool // it came over a redirect to another origin
}

// blame notes that a mirror's answer was no good. It returns whether there is somebody else to ask.
func (r *registry) blame(h *host) bool {
	if h == nil || h == r.hosts[len(r.hosts)-1] {
		return false
	}
	h.failures.Add(2)
	return true
}

// follow sends q and follows redirects: never from https to http, and to another origin only with the headers that any server may see.
func (r *registry) follow(ctx context.Context, h *host, q request, authorization string, last bool) (*reply, error) {
	u := &url.URL{Scheme: h.Scheme, Host: h.Host, Path: path.Join("/", h.Path, r.path, q.kind, q.object)}
	if h.Host != r.domain && !(r.domain == "docker.io" && h.Host == "registry-1.docker.io") {
		u.RawQuery = url.Values{"ns": {r.domain}}.Encode()
	}
	foreign := false
	for hop := 0; hop <= maxRedirects; hop++ {
		header := http.Header{"User-Agent": {"cribox"}, "Accept": {q.accept}, "Accept-Encoding": {"identity"}}
		if q.offset > 0 {
			header.Set("Range", fmt.Sprintf("bytes=%d-", q.offset))
		}
		if h.is(u) {
			for k, v := range h.Header {
				header[k] = slices.Clone(v)
			}
			if authorization != "" {
				header.Set("Authorization", authorization)
			}
		} else {
			foreign = true
		}
		resp, err := r.send(ctx, h, q.method, u, header, last)
		if err != nil {
			return nil, err
		}
		if !redirects(resp.StatusCode) {
			return &reply{Response: resp, host: h, foreign: foreign}, nil
		}
		resp.Body.Close()
		next, err := u.Parse(resp.Header.Get("Location"))
		if err != nil || next.Host == "" || next.Scheme != "https" && next.Scheme != "http" {
			return nil, fmt.Errorf("%s redirects %s to something that is not a web address", origin(u), q)
		}
		if next.Scheme == "http" && resp.Request.URL.Scheme == "https" { // what was really spoken
			return nil, fmt.Errorf("%s redirects %s from https to plain http at %s", origin(u), q, next.Host)
		}
		next.User = nil
		u = next
	}
	return nil, fmt.Errorf("%s redirects %s more than %d times", h.origin(), q, maxRedirects)
}

func redirects(code int) bool {
	switch code {
	case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther, http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		return true
	}
	return false
}

var errSilent = errors.New("no bytes for too long")

// send does one round trip. The connection is given up when it is silent for too long, before and after the headers.
func (r *registry) send(ctx context.Context, h *host, method string, u *url.URL, header http.Header, last bool) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	patience := r.idle
	if !last {
		patience = min(patience, mirrorPatience)
	}
	timer := time.AfterFunc(patience, func() { cancel(errSilent) })
	req, err := http.NewRequestWithContext(ctx, method, u.String(), nil)
	if err != nil {
		timer.Stop()
		cancel(nil)
		return nil, err
	}
	req.Header = header
	// Not Client.Do: redirects are ours to follow, and its errors quote the Location.
	resp, err := h.Client.Transport.RoundTrip(req)
	timer.Stop()
	if err != nil {
		cause := context.Cause(ctx)
		cancel(nil)
		return nil, transportError(u, err, cause)
	}
	resp.Body = &body{ReadCloser: resp.Body, reg: r, timer: timer, ctx: ctx, cancel: cancel, from: u}
	return resp, nil
}

// body watches the reading of a reply: the clock runs only while we wait for the peer, not while a disk is slow.
type body struct {
	io.ReadCloser
	reg    *registry
	timer  *time.Timer
	ctx    context.Context
	cancel context.CancelCauseFunc
	from   *url.URL
}

func (b *body) Read(p []byte) (int, error) {
	b.timer.Reset(b.reg.idle)
	n, err := b.ReadCloser.Read(p)
	b.timer.Stop()
	b.reg.prog.moved.Add(int64(n))
	if err != nil && err != io.EOF {
		err = transportError(b.from, err, context.Cause(b.ctx))
	}
	return n, err
}

func (b *body) Close() error {
	b.timer.Stop()
	err := b.ReadCloser.Close()
	b.cancel(nil)
	return err
}

// transportError names the server and decides whether trying again makes sense.
func transportError(u *url.URL, err, cause error) error {
	if errors.Is(cause, errSilent) {
		return unavailable{fmt.Errorf("%s: %w", origin(u), errSilent)}
	}
	if cause != nil {
		return cause
	}
	var plain tls.RecordHeaderError
	if errors.As(err, &plain) && string(plain.RecordHeader[:]) == "HTTP/" {
		return unavailable{fmt.Errorf("%s speaks plain http, which its hosts.toml does not say: %w", origin(u), err)}
	}
	return unavailable{fmt.Errorf("%s: %w", origin(u), err)}
}

// hopeless are transport errors that no second try will heal.
func hopeless(err error) bool {
	var dns *net.DNSError
	var cert x509.UnknownAuthorityError
	var name x509.HostnameError
	var invalid x509.CertificateInvalidError
	return errors.As(err, &dns) && dns.IsNotFound || errors.As(err, &cert) || errors.As(err, &name) || errors.As(err, &invalid)
}

// backoff grows from 100 ms to 5 s, half of it by chance.
func backoff(attempt int) time.Duration {
	d := min(100*time.Millisecond<<min(attempt-1, 10), 5*time.Second)
	return d/2 + rand.N(d/2+1)
}

// retryAfter reads both forms of the header. Nonsense is 0.
func retryAfter(v string, now time.Time) time.Duration {
	if s, err := strconv.Atoi(v); err == nil && s >= 0 {
		return time.Duration(min(s, 1<<30)) * time.Second
	}
	if t, err := http.ParseTime(v); err == nil {
		return max(t.Sub(now), 0)
	}
	return 0
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// errorDetail is what a registry says about its refusal, one line, capped.
func errorDetail(b []byte) string {
	var doc struct {
		Errors           []struct{ Code, Message string }
		Details, Message string
	}
	text := ""
	if json.Unmarshal(b, &doc) == nil {
		for _, e := range doc.Errors {
			text += e.Code + " " + e.Message + " "
		}
		text += doc.Details + " " + doc.Message
	} else {
		text = string(b)
	}
	text = strings.Join(strings.FieldsFunc(strings.ToValidUTF8(text, "?"), func(r rune) bool { return r <= ' ' || r == 0x7f }), " ")
	if len(text) > 300 {
		text = strings.ToValidUTF8(text[:300], "") + "..."
	}
	return text
}
