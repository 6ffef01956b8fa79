package main

import "time"

// figure is one row of the table.
type figure struct {
	text, unit string
	more       bool // more is better
}

var (
	podStart     = &figure{text: "pod start: run the pod, create and start a container", unit: "ms"}
	podDown      = &figure{text: "pod teardown: stop and remove both", unit: "ms"}
	startRate    = &figure{text: "pod starts, 10 at a time", unit: "per s", more: true}
	downRate     = &figure{text: "pod teardowns, 10 at a time", unit: "per s", more: true}
	podCPU       = &figure{text: "processor time per pod, start and teardown", unit: "ms"}
	podPrograms  = &figure{text: "programs executed per pod, start and teardown", unit: ""}
	execTime     = &figure{text: "`exec` of `true`", unit: "ms"}
	execCPU      = &figure{text: "processor time of that", unit: "ms"}
	execRate     = &figure{text: "`exec` of `true`, 10 at a time", unit: "per s", more: true}
	probeCPU     = &figure{text: "20 probes a second with `exec`, over all pods: share of a processor", unit: "%"}
	restart      = &figure{text: "`kill -9` of the daemon and start, until it lists its pods", unit: "ms"}
	memoryIdle   = &figure{text: "memory of the runtime without pods", unit: "MiB"}
	memoryFirst  = &figure{text: "memory of helpers (shim, logger), with one pod", unit: "MiB"}
	memoryPod    = &figure{text: "memory that one more pod adds, without the workload", unit: "KiB"}
	memoryFull   = &figure{text: "memory of the runtime with pods", unit: "MiB"}
	listPods     = &figure{text: "ListPodSandbox", unit: "ms"}
	listAll      = &figure{text: "ListContainers", unit: "ms"}
	statsOfAll   = &figure{text: "ListContainerStats", unit: "ms"}
	statsOfPods  = &figure{text: "ListPodSandboxStats", unit: "ms"}
	pullMany     = &figure{text: "pull of 6 layers with 4,000 files of 4 KiB each", unit: "ms"}
	pullManyCPU  = &figure{text: "processor time of that", unit: "ms"}
	pullBig      = &figure{text: "pull of 5 layers with 60 files of 1 MiB each", unit: "ms"}
	pullBigCPU   = &figure{text: "processor time of that", unit: "ms"}
	pullOne      = &figure{text: "pull of one layer with a file of 300 MiB", unit: "ms"}
	pullOneCPU   = &figure{text: "processor time of that", unit: "ms"}
	removeFiles  = &figure{text: "RemovePodSandbox after its container wrote 24,000 files", unit: "ms"}
	logBulkCPU   = &figure{text: "container log, 80-byte lines: processor time per GB", unit: "s"}
	logBulkTime  = &figure{text: "container log, 80-byte lines: time per GB", unit: "s"}
	logSingleCPU = &figure{text: "container log, one line at a time: processor time per line", unit: "ms"}
)

// rows is the order of the table.
var rows = []*figure{
	podStart, podDown, startRate, downRate, podCPU, podPrograms, execTime, execCPU, execRate, probeCPU,
	memoryIdle, memoryFirst, memoryPod, memoryFull, restart,
	listPods, listAll, statsOfAll, statsOfPods,
	pullMany, pullManyCPU, pullBig, pullBigCPU, pullOne, pullOneCPU, removeFiles,
	logBulkTime, logBulkCPU, logSingleCPU,
}

// figures are everything that was measured, in the unit of the row.
type figures map[*figure][]float64

func (f figures) add(row *figure, value float64) { f[row] = append(f[row], value) }

// time adds how long something takes.
func (f figures) time(row *figure, what func() error) error {
	began := time.Now()
	err := what()
	f.add(row, milliseconds(time.Since(began)))
	return err
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
