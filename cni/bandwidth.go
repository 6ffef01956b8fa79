package cni

import (
	"fmt"
	"math"
	"math/big"
	"regexp"

	"github.com/containerd/errdefs"
)

const (
	ingressAnnotation = "kubernetes.io/ingress-bandwidth"
	egressAnnotation  = "kubernetes.io/egress-bandwidth"

	// The kubelet's own limits, in bits per second.
	minBandwidth = 1_000
	maxBandwidth = 1_000_000_000_000_000
	// burst is how many bits may be sent at once: the maximum of the kernel's field.
	burst = math.MaxInt32
)

type bandwidth struct {
	IngressRate  uint64 `json:"ingressRate,omitempty"`
	IngressBurst uint64 `json:"ingressBurst,omitempty"`
	EgressRate   uint64 `json:"egressRate,omitempty"`
	EgressBurst  uint64 `json:"egressBurst,omitempty"`
}

// bandwidthOf reads the pod's annotations; nil when they set no bandwidth.
func bandwidthOf(annotations map[string]string) (*bandwidth, error) {
	var b bandwidth
	for _, side := range []struct {
		key         string
		rate, burst *uint64
	}{
		{ingressAnnotation, &b.IngressRate, &b.IngressBurst},
		{egressAnnotation, &b.EgressRate, &b.EgressBurst},
	} {
		text, ok := annotations[side.key]
		if !ok {
			continue
		}
		rate, err := parseQuantity(text)
		if err != nil || rate < minBandwidth || rate > maxBandwidth {
			return nil, fmt.Errorf("annotation %s: %q is not between 1k and 1P: %w", side.key, text, errdefs.ErrInvalidArgument)
		}
		*side.rate, *side.burst = rate, burst
	}
	if b == (bandwidth{}) {
		return nil, nil
	}
	return &b, nil
}

// quantity matches Kubernetes' resource.Quantity: digits, then a suffix or an exponent. The length
// is limited because the exponent is expanded to a number.
var quantity = regexp.MustCompile(`^\+?([0-9]{1,24}(?:\.[0-9]{0,24})?|\.[0-9]{1,24})` +
	`(?:([eE][+-]?[0-9]{1,2})|(Ki|Mi|Gi|Ti|Pi|Ei|n|u|m|k|M|G|T|P|E))?$`)

var suffixes = map[string]*big.Rat{
	"": big.NewRat(1, 1), "n": big.NewRat(1, 1e9), "u": big.NewRat(1, 1e6), "m": big.NewRat(1, 1e3),
	"k": big.NewRat(1e3, 1), "M": big.NewRat(1e6, 1), "G": big.NewRat(1e9, 1), "T": big.NewRat(1e12,
		1), "P": big.NewRat(1e15, 1), "E": big.NewRat(1e18, 1),
	"Ki": big.NewRat(1<<10, 1), "Mi": big.NewRat(1<<20, 1), "Gi": big.NewRat(1<<30, 1), "Ti": big.NewRat(1<<40,
		1), "Pi": big.NewRat(1<<50, 1), "Ei": big.NewRat(1<<60, 1),
}

// parseQuantity returns the quantity's value, rounded up to an integer.
func parseQuantity(s string) (uint64, error) {
	m := quantity.FindStringSubmatch(s)
	if m == nil {
		return 0, fmt.Errorf("quantity %q: %w", s, errdefs.ErrInvalidArgument)
	}
	v, ok := new(big.Rat).SetString(m[1] + m[2])
	if !ok {
		return 0, fmt.Errorf("quantity %q: %w", s, errdefs.ErrInvalidArgument)
	}
	v.Mul(v, suffixes[m[3]])
	whole := new(big.Int).Add(v.Num(), new(big.Int).Sub(v.Denom(), big.NewInt(1)))
	whole.Quo(whole, v.Denom())
	if !whole.IsUint64() {
		return 0, fmt.Errorf("quantity %q is too large: %w", s, errdefs.ErrInvalidArgument)
	}
	return whole.Uint64(), nil
}
