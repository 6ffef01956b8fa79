package imageservice
import ("testing";"time";"fmt";"os/exec";"syscall";"bytes";"golang.org/x/sys/unix"
"github.com/containerd/containerd/v2/pkg/archive")
func TestZZ(t *testing.T){
	for _, s := range []struct{ layers, files, size int }{{1, 8000, 4 << 10}} {
	tarball := files(t, 1, s.files, s.size)
	for i := range 2 {
	d := t.TempDir()
	exec.Command("sync").Run()
	var a,b syscall.Rusage
	syscall.Getrusage(0,&a)
	start:=time.Now()
	name:="ours"
	if i%2==0 { name="ctrd"
		_,err:=archive.Apply(t.Context(), d, bytes.NewReader(tarball)); must(t,err)
	} else {
		fd,_:=unix.Open(d, unix.O_PATH,0)
		_,err:=extract(t.Context(), bytes.NewReader(tarball), fd, 1<<20); must(t,err)
		unix.Close(fd)
	}
	syscall.Getrusage(0,&b)
	fmt.Printf("==%v %s %dms cpu user %dms sys %dms\n", s, name, time.Since(start).Milliseconds(), (b.Utime.Nano()-a.Utime.Nano())/1e6, (b.Stime.Nano()-a.Stime.Nano())/1e6)
	}
	}
}
