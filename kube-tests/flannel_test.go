package kubetests

import (
	"fmt"
	"strings"
	"testing"
)

// flannel is its published manifest for one namespace and two nodes: the same volumes, init containers, rights and
// probes. The image is made from flannel's own programs; nftables in place of iptables needs no kernel module, and
// host-gw in place of vxlan no device.
const flannel = `
kind: ClusterRole
apiVersion: rbac.authorization.k8s.io/v1
metadata: {name: THE_SPACE}
rules:
- {apiGroups: [""], resources: [pods], verbs: [get]}
- {apiGroups: [""], resources: [nodes], verbs: [get, list, watch]}
- {apiGroups: [""], resources: [nodes/status], verbs: [patch]}
---
kind: ClusterRoleBinding
apiVersion: rbac.authorization.k8s.io/v1
metadata: {name: THE_SPACE}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: THE_SPACE}
subjects: [{kind: ServiceAccount, name: flannel, namespace: THE_SPACE}]
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: flannel}
---
kind: ConfigMap
apiVersion: v1
metadata: {name: kube-flannel-cfg}
data:
  cni-conf.json: |
    {
      "name": "cbr0",
      "cniVersion": "1.0.0",
      "plugins": [
        {"type": "flannel", "delegate": {"hairpinMode": true, "isDefaultGateway": true}},
        {"type": "portmap", "capabilities": {"portMappings": true}}
      ]
    }
  net-conf.json: |
    {"Network": "10.222.0.0/16", "EnableNFTables": true, "Backend": {"Type": "host-gw"}}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: kube-flannel-ds, labels: {tier: node, app: flannel, k8s-app: flannel}}
spec:
  selector: {matchLabels: {app: flannel}}
  template:
    metadata: {labels: {tier: node, app: flannel}}
    spec:
      affinity:
        nodeAffinity:
          requiredDuringSchedulingIgnoredDuringExecution:
            nodeSelectorTerms:
            - matchExpressions:
              - {key: kubernetes.io/hostname, operator: In, values: [THE_NODES]}
      hostNetwork: true
      priorityClassName: system-node-critical
      tolerations: [{operator: Exists, effect: NoSchedule}]
      serviceAccountName: flannel
      terminationGracePeriodSeconds: 5
      initContainers:
      - name: install-cni-plugin
        image: docker.io/library/flannel:1
        command: [cp]
        args: [-f, /flannel, /opt/cni/bin/flannel]
        volumeMounts: [{name: cni-plugin, mountPath: /opt/cni/bin}]
      - name: install-cni
        image: docker.io/library/flannel:1
        command: [/opt/bin/install-conf]
        args: [/etc/kube-flannel/cni-conf.json, /etc/cni/net.d/10-flannel.conflist]
        volumeMounts: [{name: cni, mountPath: /etc/cni/net.d}, {name: flannel-cfg, mountPath: /etc/kube-flannel/}]
      containers:
      - name: kube-flannel
        image: docker.io/library/flannel:1
        command: [/opt/bin/flanneld]
        args: [--ip-masq, --kube-subnet-mgr, --healthz-port=8081]
        ports: [{name: healthz, containerPort: 8081, protocol: TCP}]
        livenessProbe: {httpGet: {path: /healthz, port: healthz}, initialDelaySeconds: 10, periodSeconds: 30}
        readinessProbe: {httpGet: {path: /readyz, port: healthz}, initialDelaySeconds: 5, periodSeconds: 10}
        resources: {requests: {cpu: 100m, memory: 50Mi}}
        securityContext: {privileged: false, capabilities: {add: [NET_ADMIN, NET_RAW]}}
        env:
        - {name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
        - {name: POD_NAMESPACE, valueFrom: {fieldRef: {fieldPath: metadata.namespace}}}
        - {name: EVENT_QUEUE_DEPTH, value: "5000"}
        - {name: CONT_WHEN_CACHE_NOT_READY, value: "false"}
        volumeMounts:
        - {name: run, mountPath: /run/flannel}
        - {name: flannel-cfg, mountPath: /etc/kube-flannel/}
        - {name: xtables-lock, mountPath: /run/xtables.lock}
      volumes:
      - {name: run, hostPath: {path: /run/flannel}}
      - {name: cni-plugin, hostPath: {path: /opt/cni/bin}}
      - {name: cni, hostPath: {path: /etc/cni/net.d}}
      - {name: flannel-cfg, configMap: {name: kube-flannel-cfg}}
      - {name: xtables-lock, hostPath: {path: /run/xtables.lock, type: FileOrCreate}}
`

// TestFlannel: two fresh nodes without a network, on which nobody has made a folder, become ready by nothing but
// flannel's manifest, and their pods reach each other.
func TestFlannel(t *testing.T) {
	s := newSpace(t)
	one, two := *nodes+1, *nodes+2
	if err := script("up.sh", fmt.Sprintf("NODES=%d", *nodes), fmt.Sprintf("BARE=%d %d", one, two)); err != nil {
		t.Fatal(err)
	}
	names := []string{fmt.Sprint("node", one), fmt.Sprint("node", two)}
	for i, name := range names {
		s.awaitValue("node/"+name, `{.status.conditions[?(@.type=="Ready")].status}`, "False")
		why := s.get("node/"+name, `{.status.conditions[?(@.type=="Ready")].message}`)
		s.contains("the reason of "+name, why, "no network configuration in /etc/cni/net.d")
		for _, folder := range []string{"/etc/cni", "/opt/cni", "/run/flannel"} {
			if _, err := onHost(one+i, "test", "-e", folder); err == nil {
				t.Errorf("%s has %s already", name, folder)
			}
		}
	}
	t.Cleanup(func() { s.kubectl("delete", "clusterrole,clusterrolebinding", s.name) })
	s.apply(strings.NewReplacer("THE_SPACE", s.name, "THE_NODES", strings.Join(names, ", ")).Replace(flannel))
	s.wait("condition=Ready", "node/"+names[0], "node/"+names[1])
	s.kubectl("rollout", "status", "daemonset/kube-flannel-ds", "--timeout="+patience.String())

	s.apply(pod("server", tools("web", "serve", "-name", "behind-flannel"), onNode(one)) + "---\n" +
		pod("near", tools("c", "wait"), onNode(one)) + "---\n" + pod("far", tools("c", "wait"), onNode(two)) + "---\n" +
		`{apiVersion: v1, kind: Service, metadata: {name: web}, spec: {selector: {app: server}, ports: [{port: 80, targetPort: 8080}]}}`)
	s.ready("server", "near", "far")
	address, service := s.get("pod/server", "{.status.podIP}"), s.get("service/web", "{.spec.clusterIP}")
	for _, from := range []string{"near", "far"} {
		s.awaitAnswer(from, "http://"+address+":8080/peer", s.get("pod/"+from, "{.status.podIP}"))
		s.awaitAnswer(from, "http://"+service+"/", "behind-flannel")
	}
	range1 := s.get("node/"+names[0], "{.spec.podCIDR}")
	env, err := onHost(one, "cat", "/run/flannel/subnet.env")
	if err != nil || !strings.Contains(env, strings.TrimSuffix(range1, ".0/24")+".1/24") || !strings.HasPrefix(address, strings.TrimSuffix(range1, "0/24")) {
		t.Errorf("the node has %s, flannel has written %q, the pod has %s: %v", range1, env, address, err)
	}
}
