package server

import "strings"

// isID says whether asked is the id or its beginning; nothing asked fits everything.
func isID(asked, id string) bool { return strings.HasPrefix(id, asked) }

// hasLabels says whether all labels that are asked for are there.
func hasLabels(asked, labels map[string]string) bool {
	for k, v := range asked {
		if have, ok := labels[k]; !ok || have != v {
			return false
		}
	}
	return true
}
