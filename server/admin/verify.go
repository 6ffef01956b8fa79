package admin

import (
	"net/http"
	"sync"

	"github.com/cribox/cribox/imageservice"
)

func (s *Server) verify(images *imageservice.Images, w http.ResponseWriter, req *http.Request) error {
	var ask VerifyRequest
	if err := decode(req, &ask); err != nil {
		return err
	}
	run, err := images.Verify(ask.Images, ask.Repair, authOf(ask.Username, ask.Password))
	if err != nil {
		return err
	}
	var mu sync.Mutex // guards found
	var found []Verified
	take := func() []Verified {
		mu.Lock()
		defer mu.Unlock()
		taken := found
		found = nil
		return taken
	}
	progress := func() Event {
		image, steps := run.Progress()
		return Event{Image: image.ID, Steps: stepsOf(steps), Verified: take()}
	}
	follow(w, req, progress, func() (Event, error) {
		err := run.Run(req.Context(), func(v imageservice.Verified) {
			mu.Lock()
			defer mu.Unlock()
			found = append(found, verifiedOf(v))
		})
		return Event{Verified: take()}, err
	})
	return nil
}
