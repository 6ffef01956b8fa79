package admin

import (
	"net/http"
	"time"
)

// Debt is something that the daemon has to do yet, and tries again until it is done.
type Debt struct {
	Kind  string    `json:"kind,omitempty"` // "pod", "container"; "" for what belongs to none
	ID    string    `json:"id,omitempty"`
	Name  string    `json:"name,omitempty"`
	What  string    `json:"what"`
	Since time.Time `json:"since,omitzero"`
	Tries int       `json:"tries,omitempty"` // that have failed
	Error string    `json:"error,omitempty"` // of the last try
	Next  time.Time `json:"next,omitzero"`
}

func (s *Server) debts(p *parts, w http.ResponseWriter, _ *http.Request) error {
	all := []Debt{}
	for _, d := range p.pods.Debts() {
		all = append(all, Debt{Kind: d.Kind, ID: d.ID, Name: d.Name, What: d.What, Since: d.Since, Tries: d.Tries,
			Error: d.Err, Next: d.Next})
	}
	for _, what := range p.images.Debts() {
		all = append(all, Debt{What: what})
	}
	return send(w, all)
}
