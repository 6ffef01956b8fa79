// Package adminclient asks the daemon over its admin socket, for cribox's own commands.
package adminclient

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/cribox/cribox/config"
	"github.com/cribox/cribox/server/admin"
)

const dialTime = 5 * time.Second

// Client asks the daemon over its admin socket.
type Client struct {
	http   *http.Client
	socket string
}

// New returns a Client for the daemon with this configuration.
func New(c config.Config) *Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{Timeout: dialTime}).DialContext(ctx, "unix", c.AdminSocket())
	}
	return &Client{http: &http.Client{Transport: &http.Transport{DialContext: dial}}, socket: c.AdminSocket()}
}

// Do sends a request, and returns the answer unless it is an error.
func (c *Client) Do(ctx context.Context, method, path string, body io.Reader) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://cribox"+path, body)
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	var dial *net.OpError
	if errors.As(err, &dial) && dial.Op == "dial" {
		return nil, fmt.Errorf("the daemon does not answer on %s: %w; is `cribox serve` running, with the same flags?",
			c.socket, dial.Err)
	}
	if err != nil {
		return nil, err
	}
	if resp.StatusCode < 300 {
		return resp, nil
	}
	defer resp.Body.Close()
	var e admin.Event
	if err := json.NewDecoder(resp.Body).Decode(&e); err != nil || e.Error == "" {
		return nil, fmt.Errorf("%s %s: the daemon answers %s", method, path, resp.Status)
	}
	return nil, errors.New(e.Error)
}

// Get decodes the answer to a GET request into v.
func (c *Client) Get(ctx context.Context, path string, v any) error {
	resp, err := c.Do(ctx, http.MethodGet, path, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	return json.NewDecoder(resp.Body).Decode(v)
}

// Follow calls show for every line of a long answer but the last, and returns that.
func (c *Client) Follow(ctx context.Context, path string, body io.Reader, show func(admin.Event)) (admin.Event, error) {
	resp, err := c.Do(ctx, http.MethodPost, path, body)
	if err != nil {
		return admin.Event{}, err
	}
	defer resp.Body.Close()
	for lines := json.NewDecoder(resp.Body); ; {
		var e admin.Event
		err := lines.Decode(&e)
		switch {
		case err != nil && ctx.Err() != nil:
			return e, ctx.Err()
		case err != nil:
			return e, fmt.Errorf("the daemon has ended before it was done (%w)", err)
		case !e.Done:
			show(e)
		case e.Error != "":
			return e, errors.New(e.Error)
		default:
			return e, nil
		}
	}
}

// JSONBody returns a body for a request.
func JSONBody(v any) (io.Reader, error) {
	b, err := json.Marshal(v)
	return bytes.NewReader(b), err
}
