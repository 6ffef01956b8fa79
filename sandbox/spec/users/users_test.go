package users

import (
	"bytes"
	_ "embed"
	"fmt"
	"reflect"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/containerd/errdefs"

	"github.com/cribox/cribox/sandbox/spec/check"
)

//go:embed testdata/passwd
var passwd []byte

//go:embed testdata/group
var group []byte

func request(change func(*runtimeapi.LinuxContainerSecurityContext)) *runtimeapi.LinuxContainerSecurityContext {
	sc := &runtimeapi.LinuxContainerSecurityContext{}
	if change != nil {
		change(sc)
	}
	return sc
}

func id(n int64) *runtimeapi.Int64Value { return &runtimeapi.Int64Value{Value: n} }

func wantInvalid(t *testing.T, err error, field string) {
	t.Helper()
	if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), field) {
		t.Errorf("got %v, want an invalid %s", err, field)
	}
}

func TestResolveUser(t *testing.T) {
	app := User{UID: 1000, GID: 1000, AdditionalGIDs: []uint32{1000, 10, 29}, Username: "app", Home: "/home/app"}
	for _, r := range []struct {
		name, image string
		change      func(*runtimeapi.LinuxContainerSecurityContext)
		want        User
	}{
		{"nothing said", "", nil, User{AdditionalGIDs: []uint32{0, 10}, Username: "root", Home: "/root"}},
		{"image by name", "app", nil, app},
		{"image by number", "1000", nil, app},
		{"image by number, unknown", "4711", nil, User{UID: 4711, AdditionalGIDs: []uint32{0}, Home: "/"}},
		{"highest number", "2147483647", nil, User{UID: 2147483647, AdditionalGIDs: []uint32{0}, Home: "/"}},
		{"image with group", "app:audio", nil, User{UID: 1000, GID: 29, AdditionalGIDs: []uint32{29, 10}, Username: "app", Home: "/home/app"}},
		{"image with number of group", "4711:77", nil, User{UID: 4711, GID: 77, AdditionalGIDs: []uint32{77}, Home: "/"}},
		{"image with an empty group", "app:", nil, app},
		{"home that is no path", "other", nil, User{UID: 1001, GID: 100, AdditionalGIDs: []uint32{100, 29}, Username: "other", Home: "/"}},
		{"home that rings", "bell", nil, User{UID: 1002, GID: 100, AdditionalGIDs: []uint32{100}, Username: "bell", Home: "/"}},
		{"user of the request over the image's", "root:wheel", func(sc *runtimeapi.LinuxContainerSecurityContext) { sc.RunAsUser = id(1000) }, app},
		{"zero is a user", "app", func(sc *runtimeapi.LinuxContainerSecurityContext) { sc.RunAsUser = id(0) },
			User{AdditionalGIDs: []uint32{0, 10}, Username: "root", Home: "/root"}},
		{"name of the request", "", func(sc *runtimeapi.LinuxContainerSecurityContext) { sc.RunAsUsername = "app" }, app},
		{"group of the request", "", func(sc *runtimeapi.LinuxContainerSecurityContext) { sc.RunAsUser, sc.RunAsGroup = id(1000), id(0) },
			User{UID: 1000, GID: 0, AdditionalGIDs: []uint32{0, 10, 29}, Username: "app", Home: "/home/app"}},
		{"merge", "app", func(sc *runtimeapi.LinuxContainerSecurityContext) { sc.SupplementalGroups = []int64{5000, 10, 1000} },
			User{UID: 1000, GID: 1000, AdditionalGIDs: []uint32{1000, 10, 29, 5000}, Username: "app", Home: "/home/app"}},
		{"strict", "app", func(sc *runtimeapi.LinuxContainerSecurityContext) {
			sc.SupplementalGroupsPolicy, sc.SupplementalGroups = runtimeapi.SupplementalGroupsPolicy_Strict, []int64{5000}
		}, User{UID: 1000, GID: 1000, AdditionalGIDs: []uint32{1000, 5000}, Username: "app", Home: "/home/app"}},
		{"digit first", "1user", nil, User{UID: 1010, GID: 1010, AdditionalGIDs: []uint32{1010}, Username: "1user", Home: "/home/1user"}},
		{"not ASCII", "üser", nil, User{UID: 1011, GID: 1011, AdditionalGIDs: []uint32{1011}, Username: "üser", Home: "/"}},
		{"sign first", "+33", nil, User{UID: 1012, GID: 1012, AdditionalGIDs: []uint32{1012}, Username: "+33", Home: "/"}},
		{"digit first, by the request", "", func(sc *runtimeapi.LinuxContainerSecurityContext) { sc.RunAsUsername = "1user" },
			User{UID: 1010, GID: 1010, AdditionalGIDs: []uint32{1010}, Username: "1user", Home: "/home/1user"}},
		{"number by the request's name", "", func(sc *runtimeapi.LinuxContainerSecurityContext) { sc.RunAsUsername = "1000" }, app},
		{"zeros first", "007", nil, User{UID: 7, AdditionalGIDs: []uint32{0}, Username: "short", Home: "/"}},
		{"zeros first, known", "001000:0", nil, User{UID: 1000, GID: 0, AdditionalGIDs: []uint32{0, 10, 29}, Username: "app", Home: "/home/app"}},
		{"four fields", "four", nil, User{UID: 1013, GID: 1013, AdditionalGIDs: []uint32{1013}, Username: "four", Home: "/"}},
		{"line of Windows", "windows", nil, User{UID: 1015, GID: 1015, AdditionalGIDs: []uint32{1015, 31}, Username: "windows", Home: "/home/windows"}},
		{"indented", "indented", nil, User{UID: 1016, GID: 1016, AdditionalGIDs: []uint32{1016}, Username: "indented", Home: "/"}},
		{"group of three fields", "4711:three", nil, User{UID: 4711, GID: 30, AdditionalGIDs: []uint32{30}, Home: "/"}},
	} {
		t.Run(r.name, func(t *testing.T) {
			got, err := Resolve(r.image, request(r.change), passwd, group)
			got.Notes = nil // see TestUserNotes
			if err != nil || !reflect.DeepEqual(got, r.want) {
				t.Errorf("got %+v, %v\nwant %+v", got, err, r.want)
			}
		})
	}
	got, err := Resolve("1000:1000", nil, nil, nil)
	if want := (User{UID: 1000, GID: 1000, AdditionalGIDs: []uint32{1000}, Home: "/"}); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("without any file and request: %+v, %v", got, err)
	}
}

// TestUserNotes: what an image's files lack is made up for as elsewhere, and noted.
func TestUserNotes(t *testing.T) {
	root := User{AdditionalGIDs: []uint32{0, 10}, Username: "root", Home: "/root"}
	for image, want := range map[string]User{
		":":         root,
		":1000":     {GID: 1000, AdditionalGIDs: []uint32{1000, 10}, Username: "root", Home: "/root"},
		":app":      {GID: 1000, AdditionalGIDs: []uint32{1000, 10}, Username: "root", Home: "/root"},
		"three":     {UID: 1014, AdditionalGIDs: []uint32{0}, Username: "three", Home: "/"},
		"short":     {UID: 7, AdditionalGIDs: []uint32{0}, Username: "short", Home: "/"},
		"nogroup":   {UID: 1017, AdditionalGIDs: []uint32{0}, Username: "nogroup", Home: "/"},
		"textgroup": {UID: 1018, AdditionalGIDs: []uint32{0}, Username: "textgroup", Home: "/"},
		"bigmember": {UID: 9, GID: 9, AdditionalGIDs: []uint32{9}, Username: "bigmember", Home: "/"},
	} {
		got, err := Resolve(image, nil, append(bytes.Clone(passwd), "bigmember:x:9:9::/:\n"...), group)
		if err != nil || len(got.Notes) == 0 {
			t.Errorf("USER %q: %v, notes %v", image, err, got.Notes)
		}
		if got.Notes = nil; !reflect.DeepEqual(got, want) {
			t.Errorf("USER %q is %+v, want %+v", image, got, want)
		}
	}
}

// TestImageUser: what an image's status tells of its user is what a container of it runs as.
func TestImageUser(t *testing.T) {
	for user, want := range map[string]string{"": "", ":": "", ":1000": "", "0": "0", "1000:5": "1000", "007": "7", "00": "0", "app": "app", "app:audio": "app",
		"+33": "+33", "-1": "-1", "1user": "1user", "1e3": "1e3", "4294967296": "4294967296", "99999999999999999999": "99999999999999999999"} {
		uid, name := OfImage(user)
		got := name
		if uid != nil {
			got = fmt.Sprint(*uid)
		}
		if got != want || uid != nil && name != "" {
			t.Errorf("USER %q is shown as id %v, name %q", user, uid, name)
		}
		u, err := Resolve(user, nil, passwd, group)
		if err == nil && uid != nil && *uid != u.UID || err == nil && uid == nil && name != "" && name != u.Username {
			t.Errorf("USER %q is shown as id %v, name %q, and runs as %+v", user, uid, name, u)
		}
	}
}

// TestResolveUserRefuses (SEC-01): no number becomes another one, none becomes a name.
func TestResolveUserRefuses(t *testing.T) {
	hostile := []string{
		"4294967296", "4294967295", "2147483648", "-1", "18446744073709551616", "1e3", "0x0", " 0", "0 ", "+0", "0\n", "0\x00", "٠", "1_000",
		"0:4294967296", "0:-1", "0:0x0", "0: 0", "0:0:0", "app:root:x", "svc", "minus", "grp", "empty", "hex", "nobody-knows", "app:nobody-knows", "app:big",
		"a/b", "../root", "app\n", "app ", "-app", strings.Repeat("a", 1<<20),
	}
	for _, u := range hostile {
		t.Run(check.Truncate(u), func(t *testing.T) {
			got, err := Resolve(u, nil, passwd, group)
			if err == nil {
				t.Fatalf("became %+v", got)
			}
			wantInvalid(t, err, "")
			if len(err.Error()) > 500 {
				t.Errorf("the error is %d bytes long", len(err.Error()))
			}
		})
	}
	for field, change := range map[string]func(*runtimeapi.LinuxContainerSecurityContext){
		"run_as_username":                 func(sc *runtimeapi.LinuxContainerSecurityContext) { sc.RunAsUser, sc.RunAsUsername = id(0), "app" },
		"run_as_group":                    func(sc *runtimeapi.LinuxContainerSecurityContext) { sc.RunAsGroup = id(0) },
		"run_as_user":                     func(sc *runtimeapi.LinuxContainerSecurityContext) { sc.RunAsUser = id(-1) },
		"security_context.run_as_user":    func(sc *runtimeapi.LinuxContainerSecurityContext) { sc.RunAsUser = id(1 << 31) },
		"security_context.run_as_group":   func(sc *runtimeapi.LinuxContainerSecurityContext) { sc.RunAsUser, sc.RunAsGroup = id(0), id(1<<32) },
		"supplemental_groups":             func(sc *runtimeapi.LinuxContainerSecurityContext) { sc.SupplementalGroups = []int64{1 << 32} },
		"context.supplemental_groups":     func(sc *runtimeapi.LinuxContainerSecurityContext) { sc.SupplementalGroups = make([]int64, maxGroups+1) },
		"supplemental_groups_policy":      func(sc *runtimeapi.LinuxContainerSecurityContext) { sc.SupplementalGroupsPolicy = 7 },
		"as_username":                     func(sc *runtimeapi.LinuxContainerSecurityContext) { sc.RunAsUsername = "2147483648" },
		"s_username":                      func(sc *runtimeapi.LinuxContainerSecurityContext) { sc.RunAsUsername = "app:audio" },
		"security_context.run_as_usernam": func(sc *runtimeapi.LinuxContainerSecurityContext) { sc.RunAsUsername = "nobody-knows" },
	} {
		t.Run(field, func(t *testing.T) {
			_, err := Resolve("", request(change), passwd, group)
			wantInvalid(t, err, field)
		})
	}
}

// TestManyGroups (SEC-04): a group file that names the user without end is
// refused, not carried around.
func TestManyGroups(t *testing.T) {
	var file bytes.Buffer
	for i := range 300000 {
		fmt.Fprintf(&file, "g%d:x:%d:app\n", i, i+1)
	}
	_, err := Resolve("app", nil, passwd, file.Bytes())
	wantInvalid(t, err, "supplemental_groups")

	line := append([]byte("wheel:x:10:"), bytes.Repeat([]byte("x,"), 4<<20)...)
	u, err := Resolve("app", nil, passwd, append(line, "app\n"...))
	if err != nil || len(u.AdditionalGIDs) != 2 {
		t.Errorf("one long line: %+v, %v", u, err)
	}
}
