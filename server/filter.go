package server

import "strings"

// isID reports whether asked is a prefix of id. An empty asked matches every id.
func isID(asked, id string) bool { return strings.HasPrefix(id, asked) }

// hasLabels reports whether labels contains all of asked.
func hasLabels(asked, labels map[string]string) bool {
	for k, v := range asked {
		if have, ok := labels[k]; !ok || have != v {
			return false
		}
	}
	return true
}
