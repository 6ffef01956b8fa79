package sandbox

import (
	"github.com/cribox/cribox/sandbox/stats"
	"github.com/cribox/cribox/sandbox/streams"
	"github.com/cribox/cribox/sandbox/table"
)

// What is known of pods and containers, by names that other packages can say.
type (
	Pod       = table.Pod
	Container = table.Container
	Event     = table.Event
	Encodings = table.Encodings
	Encoded   = table.Encoded
)

// What pods and containers use, by names that other packages can say.
type (
	Stats      = stats.Stats
	PodStats   = stats.PodStats
	Metrics    = stats.Metrics
	PodMetrics = stats.PodMetrics
	Interface  = stats.Interface
	Layer      = stats.Layer
	Usage      = stats.Usage
	Pressure   = stats.Pressure
	Stall      = stats.Stall
)

// What a client brings to a process, by names that other packages can say.
type (
	Streams    = streams.Streams
	Size       = streams.Size
	ExecResult = streams.ExecResult
)
