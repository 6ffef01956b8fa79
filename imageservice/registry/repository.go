// Package registry sends requests to the hosts of a repository. It verifies and stores nothing that
// they send.
//
// # Credentials
//
// The credentials of a pull are sent to the registry of the reference (or what hosts.toml
// configures as its server) and to the registry's token server, and nowhere else:
//
//   - not to mirrors; a mirror that needs credentials gets those that the node has for it, or a
//     header in hosts.toml
//   - not to another origin after a redirect
//   - not to a token server that shares neither host nor registrable domain with the registry,
//     unless cribox.toml in the registry's folder names it
//   - not if server_address names another registry
//
// If a pull has no credentials, the registry gets those that the node has for it (package keyring),
// with the same limits. The node is asked at the first challenge of a host only.
//
// A foreign token server over https is asked without credentials, because public registries with
// vanity names need that.
package registry

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
	"net/http/httptrace"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/cribox/cribox/imageservice/fault"
	"github.com/cribox/cribox/imageservice/imageref"
	"github.com/cribox/cribox/imageservice/keyring"
	"github.com/cribox/cribox/imageservice/progress"
	"github.com/cribox/cribox/internal/activity"
	"github.com/cribox/cribox/internal/telemetry"
)

const (
	maxErrorBody   = 8 << 10 // bytes read from the body of an error response
	MaxAttempts    = 5       // per request and host
	maxRedirects   = 10
	maxRetryAfter  = 60 * time.Second
	mirrorPatience = 4 * time.Second  // until the first byte, while there are other hosts to ask
	maxSilence     = 10 * time.Second // pause within a response, while there are other hosts to ask
	troubledFor    = 30 * time.Second // how long an unreachable or slow host is asked after the others
)

// Repository sends requests to the hosts of one repository, as configured in hosts.toml: mirrors
// first, the registry itself last.
type Repository struct {
	repo     imageref.Target
	settings registrySettings
	creds    Credentials // never sent to mirrors; redacted in errors
	node     *keyring.Keyring
	local    bool // it is in this process
	hosts    []*Host
	conns    []*http.Transport
	giveBack []func() // for Close
	prog     *progress.Clock
	stall    time.Duration // longest time until the first byte of a response
	idle     time.Duration // a connection without traffic for this long is closed, and the request retried
	troubled *troubledHosts
}

// Request is one GET or HEAD request to a repository.
type Request struct {
	Method  string
	Kind    string // "manifests" or "blobs"
	Object  string // tag or digest
	Accept  string
	Offset  int64
	Resolve bool // ask only hosts that may resolve tags
}

func (q Request) String() string { return strings.TrimSuffix(q.Kind, "s") + " " + q.Object }

// able returns the hosts that may be asked for q.
func (r *Repository) able(q Request) (hosts []*Host) {
	need := docker.HostCapabilityPull
	if q.Resolve {
		need |= docker.HostCapabilityResolve
	}
	for _, h := range r.hosts {
		if h.Capabilities.Has(need) && h.lie.Load() == nil {
			hosts = append(hosts, h)
		}
	}
	return hosts
}

// Do sends q to the hosts in turn and returns the first successful response. The caller closes its
// body.
//
// While there are other hosts to ask, each host gets one attempt with short timeouts. If all fail,
// Do asks those again that may succeed with more time, and those that it skipped because they were
// recently slow or unreachable. See join for the error.
func (r *Repository) Do(ctx context.Context, q Request) (*Reply, error) {
	hosts := r.able(q)
	var fails failures
	var later []*Host
	for _, h := range hosts {
		if len(hosts) == 1 || r.trouble(h) != noTrouble {
			later = append(later, h)
			continue
		}
		resp, err := r.ask(ctx, h, q, false)
		switch {
		case err == nil:
			return resp, nil
		case ctx.Err() != nil:
			return nil, context.Cause(ctx)
		}
		fails.set(h, err)
		if Transient(err) {
			later = append(later, h)
		}
	}
	for _, h := range r.hopeful(later, fails) {
		resp, err := r.ask(ctx, h, q, r.trouble(h) != dead || !fails.definite())
		switch {
		case err == nil:
			return resp, nil
		case ctx.Err() != nil:
			return nil, context.Cause(ctx)
		}
		fails.set(h, err)
	}
	return nil, r.join(q, fails)
}

// trouble returns why a host is asked after the others.
func (r *Repository) trouble(h *Host) trouble {
	if t := r.troubled.of(h.name); t != noTrouble || h.Failures.Load() < 2 {
		return t
	}
	return slow
}

// hopeful returns the hosts to ask again, unreachable ones last. If the registry itself has given a
// definite error, these are only the hosts that have not had enough time to respond.
func (r *Repository) hopeful(later []*Host, fails failures) (hosts []*Host) {
	later = slices.DeleteFunc(later, func(h *Host) bool {
		err := fails.of(h)
		return err != nil && fails.definite() && !errors.Is(err, errSilent)
	})
	for _, h := range later {
		if r.trouble(h) != dead {
			hosts = append(hosts, h)
		}
	}
	for _, h := range later {
		if r.trouble(h) == dead {
			hosts = append(hosts, h)
		}
	}
	return hosts
}

// failures are the last errors of the hosts that were asked, in the order of asking.
type failures []hostError

type hostError struct {
	*Host
	error
}

func (f *failures) set(h *Host, err error) {
	*f = append(slices.DeleteFunc(*f, func(e hostError) bool { return e.Host == h }), hostError{h, err})
}

func (f failures) of(h *Host) error {
	for _, e := range f {
		if e.Host == h {
			return e.error
		}
	}
	return nil
}

// definite reports whether the registry itself has responded with an error.
func (f failures) definite() bool {
	return slices.ContainsFunc(f, func(e hostError) bool { return e.Own && answered(e.error) })
}

func answered(err error) bool {
	return !fault.IsUnavailable(err)
}

// join returns one error for all failures. It prefers the registry's response, then a failed
// connection to the registry, then the errors of mirrors, whose text it appends.
func (r *Repository) join(q Request, fails failures) error {
	rank := func(e hostError) int {
		switch {
		case e.Own && answered(e.error):
			return 3
		case e.Own:
			return 2
		case answered(e.error):
			return 1
		}
		return 0
	}
	var best *hostError
	for i := range fails {
		if best == nil || rank(fails[i]) >= rank(*best) {
			best = &fails[i]
		}
	}
	if best == nil {
		best = &hostError{nil, fmt.Errorf("no host is configured to serve %s of %s: %w",
			q, r.repo.Repository(), errdefs.ErrNotFound)}
	}
	var asides []string
	for _, h := range r.hosts {
		if lie := h.lie.Load(); lie != nil {
			asides = append(asides, fmt.Sprintf("%s: %v", h.origin(), *lie))
		}
	}
	for _, e := range fails {
		if e.Host != best.Host && !(e.Own && best.Own && e.origin() == best.origin()) {
			asides = append(asides, e.Error())
		}
	}
	if len(asides) > 0 {
		return fmt.Errorf("%w (before that: %s)", best.error, strings.Join(asides, "; "))
	}
	return best.error
}

// Has asks with a HEAD request whether the repository has a blob.
func (r *Repository) Has(ctx context.Context, d digest.Digest) (bool, error) {
	resp, err := r.Do(ctx, Request{Method: http.MethodHead, Kind: "blobs", Object: d.String(), Accept: "*/*"})
	if err != nil {
		return false, ctx.Err()
	}
	resp.Body.Close()
	return resp.StatusCode == http.StatusOK, nil
}

// ask sends the request to one host, with retries. If patient is false, it gives up at the first
// sign of trouble.
func (r *Repository) ask(ctx context.Context, h *Host, q Request, patient bool) (*Reply, error) {
	leave, err := r.enter(ctx, h, q)
	if err != nil {
		return nil, err
	}
	var resp *Reply
	try := func(ctx context.Context) (err error) {
		resp, err = r.tryOften(ctx, h, q, patient)
		return err
	}
	if q.Kind == "manifests" && len(r.hosts) > 1 { // of several hosts, one may hang
		err = activity.Do(ctx, "waiting for "+h.origin(), try)
	} else {
		err = try(ctx)
	}
	if err != nil {
		leave()
		return nil, err
	}
	resp.Body = leaving{resp.Body, leave}
	return resp, nil
}

func (r *Repository) tryOften(ctx context.Context, h *Host, q Request, patient bool) (*Reply, error) {
	var err error
	for attempt := 1; ; attempt++ {
		var resp *Reply
		resp, err = r.authorized(ctx, h, q, r.patience(h, patient))
		if err == nil && resp.StatusCode < 300 {
			return resp, nil
		}
		wait := Backoff(attempt)
		if err == nil {
			err, wait = r.failure(h, q, resp, wait)
		} else if transport(err) {
			h.Failures.Add(1)
			r.remember(h, err)
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if !patient || attempt == MaxAttempts || wait > maxRetryAfter || !Transient(err) || hadItsTime(err) {
			return nil, h.explain(err)
		}
		if err := r.prog.Waiting(func() error { return Sleep(ctx, wait) }); err != nil {
			return nil, err
		}
	}
}

// hadItsTime reports whether an error came only after a sufficiently long timeout.
func hadItsTime(err error) bool {
	var op *net.OpError
	return errors.Is(err, errSilent) || errors.As(err, &op) && op.Op == "dial" && op.Timeout()
}

// patience returns how long a host may take until the first byte. A configured dial_timeout is
// always granted.
func (r *Repository) patience(h *Host, patient bool) time.Duration {
	if patient {
		return max(r.stall, h.dial)
	}
	return max(min(r.idle, mirrorPatience), h.dial)
}

// silence returns how long a response may pause before its connection is closed. It is shorter
// while there are other hosts to ask.
func (r *Repository) silence() time.Duration {
	if len(r.able(Request{})) > 1 {
		return min(r.idle, maxSilence)
	}
	return r.idle
}

// remember records a host that was unreachable or slow. It does not record, for example, an invalid
// certificate, because another attempt would fail without delay.
func (r *Repository) remember(h *Host, err error) {
	var op *net.OpError
	switch {
	case errors.Is(err, errNoConnection), errors.As(err, &op) && op.Op == "dial":
		r.troubled.add(h.name, dead)
	case errors.Is(err, errSilent):
		r.troubled.add(h.name, slow)
	}
}

// explain adds to an authentication error why the credentials may not have been sent.
func (h *Host) explain(err error) error {
	if !errdefs.IsUnauthorized(err) && !errdefs.IsPermissionDenied(err) && !errdefs.IsNotFound(err) {
		return err
	}
	if hint := h.auth.hint(); hint != "" {
		return fmt.Errorf("%w (%s)", err, hint)
	}
	return err
}

// failure returns the error for an unsuccessful response, and the time to wait before another
// attempt.
func (r *Repository) failure(h *Host, q Request, resp *Reply, wait time.Duration) (error, time.Duration) {
	defer resp.Body.Close()
	body, _ := io.ReadAll(io.LimitReader(resp.Body, maxErrorBody))
	se := &StatusError{Code: resp.StatusCode, server: h.origin(), what: q.String(),
		detail: Redact(errorDetail(body), h.auth.secrets()...)}
	if !Busy(resp.StatusCode) {
		return se, wait
	}
	if after := retryAfter(resp.Header.Get("Retry-After"), time.Now()); after > 0 {
		wait = after
		if after > maxRetryAfter {
			return fault.Unavailable(fmt.Errorf("%w; it asks to retry after %s", se, after.Round(time.Second))), wait
		}
	}
	return fault.Unavailable(se), wait
}

// Transient reports whether the request is worth another attempt.
func Transient(err error) bool {
	return fault.IsUnavailable(err) && !hopeless(err)
}

// transport reports whether the error is one without a response.
func transport(err error) bool {
	var se *StatusError
	return fault.IsUnavailable(err) && !errors.As(err, &se)
}

// authorized sends q with the current authorization and answers challenges: at most two, the first
// because the request had no authorization, the second because a token may have expired. If the
// host refuses a token without a new challenge, authorized asks once without a token.
func (r *Repository) authorized(ctx context.Context, h *Host, q Request, patience time.Duration) (*Reply, error) {
	for tries, without := 0, false; ; {
		resp, err := r.follow(ctx, h, q, patience)
		if err != nil {
			return nil, err
		}
		if resp.StatusCode != http.StatusUnauthorized || tries == 2 {
			return resp, nil
		}
		resp.Body.Close()
		who, used := h.auth, resp.used
		if resp.foreign {
			who = h.others.at(r, h, resp.Request.URL)
		}
		if err := r.prog.Waiting(func() error { return who.prepare(ctx) }); err != nil {
			return nil, err
		}
		asking, cancel := context.WithTimeoutCause(ctx, patience, errSilent)
		err = who.challenge(asking, resp.Header, used)
		cause := context.Cause(asking)
		cancel()
		switch {
		case err != nil && ctx.Err() == nil && cause == errSilent:
			return nil, fault.Unavailable(fmt.Errorf("token server of %s: %w", h.origin(), errSilent))
		case err != nil:
			return nil, err
		case used != "" && who.current() == "" && !without:
			without = true
		default:
			tries++
		}
	}
}

// Reply is a response. Reading its body counts as progress, and fails if the server pauses too
// long.
type Reply struct {
	*http.Response
	Host    *Host
	foreign bool   // it came from another origin, after a redirect
	used    string // Authorization header that its server received
}

// strangers are servers to which a host redirects and that require their own token. A registry may
// be an alias of another one. Their tokens are requested without credentials.
type strangers struct {
	mu    sync.Mutex
	known map[string]*authorizer // by origin
}

// of returns the Authorization header for u.
func (s *strangers) of(u *url.URL) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if a := s.known[origin(u)]; a != nil {
		return a.current()
	}
	return ""
}

// at returns the authorizer of u's server.
func (s *strangers) at(r *Repository, h *Host, u *url.URL) *authorizer {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.known == nil {
		s.known = map[string]*authorizer{}
	}
	if s.known[origin(u)] == nil {
		s.known[origin(u)] = newAuthorizer(origin(u), r.scope(), Credentials{}, h.Client, nil,
			registrySettings{file: r.settings.file})
	}
	return s.known[origin(u)]
}

// scope returns the scope that a token must have.
func (r *Repository) scope() string { return "repository:" + r.repo.Path + ":pull" }

// Blame excludes a mirror that sent wrong content, for the rest of the pull. It reports whether
// other hosts can be asked.
func (r *Repository) Blame(h *Host, err error) bool {
	if h == nil || h.Own {
		return false
	}
	h.lie.Store(&err)
	return len(r.able(Request{})) > 0
}

// follow sends q and follows redirects. It follows a redirect from https to http only for a digest,
// and only if that is configured. To another origin it sends only headers that any server may
// receive.
func (r *Repository) follow(ctx context.Context, h *Host, q Request, patience time.Duration) (*Reply, error) {
	u := &url.URL{Scheme: h.Scheme, Host: h.Host, Path: path.Join("/", h.Path, r.repo.Path, q.Kind, q.Object)}
	until := time.Now().Add(patience) // for all redirects together
	if h.proxies {
		u.RawQuery = url.Values{"ns": {r.repo.Domain}}.Encode()
	}
	var used string
	var foreign bool
	for hop := 0; hop <= maxRedirects; hop++ {
		header := http.Header{"User-Agent": {"cribox"}, "Accept": {q.Accept}, "Accept-Encoding": {"identity"}}
		if q.Offset > 0 {
			header.Set("Range", fmt.Sprintf("bytes=%d-", q.Offset))
		}
		if h.is(u) {
			for k, v := range h.Header {
				header[k] = slices.Clone(v)
			}
			used, foreign = h.auth.current(), false
		} else {
			used, foreign = h.others.of(u), true
		}
		if used != "" {
			header.Set("Authorization", used)
		}
		resp, err := r.send(ctx, h, q.Method, u, header, time.Until(until))
		if err != nil {
			return nil, err
		}
		if !redirects(resp.StatusCode) {
			return &Reply{Response: resp, Host: h, foreign: foreign, used: used}, nil
		}
		resp.Body.Close()
		next, err := u.Parse(resp.Header.Get("Location"))
		if err != nil || next.Host == "" || next.Scheme != "https" && next.Scheme != "http" {
			return nil, fmt.Errorf("%s redirects %s to something that is not a web address", origin(u), q)
		}
		if next.Scheme == "http" && resp.Request.URL.Scheme == "https" { // the scheme that was really used
			if !strings.HasPrefix(q.Object, "sha256:") { // a tag's content cannot be verified
				return nil, fmt.Errorf("%s redirects %s from https to plain http at %s", origin(u), q, next.Host)
			}
			if !r.settings.RedirectToHTTP {
				return nil, fmt.Errorf("%s redirects %s from https to plain http at %s; "+
					"to allow it, set redirect_to_http = true in %s",
					origin(u), q, next.Host, r.settings.file)
			}
		}
		next.User = nil
		u = next
	}
	return nil, fmt.Errorf("%s redirects %s more than %d times", h.origin(), q, maxRedirects)
}

func redirects(code int) bool {
	switch code {
	case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther, http.StatusTemporaryRedirect,
		http.StatusPermanentRedirect:
		return true
	}
	return false
}

var (
	errSilent = errors.New("no data received for too long")
	// errNoConnection accompanies errSilent if no connection was established.
	errNoConnection = errors.New("no connection")
)

// send does one round trip. It cancels the request if the server sends no headers within patience,
// or pauses too long in the body. The time until the headers does not count as stall time.
func (r *Repository) send(
	ctx context.Context, h *Host, method string, u *url.URL, header http.Header, patience time.Duration,
) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	timer := time.AfterFunc(patience, func() { cancel(errSilent) })
	var connected atomic.Bool
	traced := httptrace.WithClientTrace(ctx,
		&httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { connected.Store(true) }})
	req, err := http.NewRequestWithContext(traced, method, u.String(), nil)
	if err != nil {
		timer.Stop()
		cancel(nil)
		return nil, err
	}
	req.Header = header
	var resp *http.Response
	err = r.prog.Waiting(func() (err error) {
		// Not Client.Do: follow handles redirects, and the errors of Do contain the Location.
		resp, err = h.Client.Transport.RoundTrip(req)
		return err
	})
	timer.Stop()
	if err != nil {
		cause := context.Cause(ctx)
		cancel(nil)
		if cause == errSilent && !connected.Load() {
			return nil, fault.Unavailable(fmt.Errorf("%s: %w for %s: %w", origin(u), errNoConnection,
				patience.Round(time.Second), errSilent))
		}
		return nil, r.transportError(h, u, err, cause)
	}
	resp.Body = &body{ReadCloser: resp.Body, reg: r, host: h, idle: r.silence(), timer: timer, ctx: ctx, cancel: cancel,
		from: u}
	return resp, nil
}

// body limits pauses while a response is read. The timer runs only during a read from the network,
// so that a slow disk does not count.
type body struct {
	io.ReadCloser
	reg    *Repository
	host   *Host
	idle   time.Duration
	timer  *time.Timer
	ctx    context.Context
	cancel context.CancelCauseFunc
	from   *url.URL
	read   atomic.Int64
}

func (b *body) Read(p []byte) (int, error) {
	b.timer.Reset(b.idle)
	n, err := b.ReadCloser.Read(b.host.share(p))
	b.timer.Stop()
	b.reg.slow(b.ctx, b.host, n)
	b.reg.prog.Moved.Add(int64(n))
	b.read.Add(int64(n))
	if err != nil && err != io.EOF {
		err = b.reg.transportError(b.host, b.from, err, context.Cause(b.ctx))
	}
	return n, err
}

func (b *body) Close() error {
	b.timer.Stop()
	err := b.ReadCloser.Close()
	if n := b.read.Swap(0); n > 0 {
		telemetry.Add(b.ctx, telemetry.PulledBytes, b.host.source(), float64(n))
	}
	b.cancel(nil)
	return err
}

// transportError names the server, and marks the error as Unavailable unless our own context ended.
func (r *Repository) transportError(h *Host, u *url.URL, err, cause error) error {
	if errors.Is(cause, errSilent) {
		return fault.Unavailable(fmt.Errorf("%s: %w", origin(u), errSilent))
	}
	if cause != nil {
		return cause
	}
	var plain tls.RecordHeaderError
	if errors.As(err, &plain) && string(plain.RecordHeader[:]) == "HTTP/" {
		return fault.Unavailable(fmt.Errorf("%s serves plain http, but its hosts.toml does not say so: %w", origin(u), err))
	}
	return fault.Unavailable(heard{origin(u) + ": " + Redact(err.Error(), h.auth.secrets()...), err})
}

// heard is an error whose text may come from a server.
type heard struct {
	text string
	err  error
}

func (h heard) Error() string { return h.text }
func (h heard) Unwrap() error { return h.err }

// hopeless reports whether a retry cannot help against a transport error.
func hopeless(err error) bool {
	var dns *net.DNSError
	var cert x509.UnknownAuthorityError
	var name x509.HostnameError
	var invalid x509.CertificateInvalidError
	return errors.As(err, &dns) && dns.IsNotFound || errors.As(err, &cert) || errors.As(err, &name) ||
		errors.As(err, &invalid)
}

// Backoff returns the time to wait after an attempt: it grows from 100 ms to 5 s, and half of it is
// random.
func Backoff(attempt int) time.Duration {
	d := min(100*time.Millisecond<<min(attempt-1, 10), 5*time.Second)
	return d/2 + rand.N(d/2+1)
}

// retryAfter parses both forms of the Retry-After header. It returns 0 for an invalid value.
func retryAfter(v string, now time.Time) time.Duration {
	if s, err := strconv.Atoi(v); err == nil && s >= 0 {
		return time.Duration(min(s, 1<<30)) * time.Second
	}
	if t, err := http.ParseTime(v); err == nil {
		return max(t.Sub(now), 0)
	}
	return 0
}

func Sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// errorDetail returns the text of a registry's error response, on one line and shortened.
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
	text = strings.Join(strings.FieldsFunc(strings.ToValidUTF8(text, "?"),
		func(r rune) bool { return r <= ' ' || r == 0x7f }), " ")
	if len(text) > 300 {
		text = strings.ToValidUTF8(text[:300], "") + "..."
	}
	return text
}
