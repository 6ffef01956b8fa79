// Package nat keeps one table of nftables: packets that leave a subnet get the host's address, and
// ports of the host lead to containers. It knows a container by its id, which is the comment of its
// rules, and runs no program.
//
// Every change is one transaction: either all of it is there or nothing. Other tables are left
// alone. The table of an instance looks like this:
//
//	table inet cribox_abc123 {
//		chain postrouting_5a1f9e07 {      # the name follows from the subnets
//			type nat hook postrouting priority srcnat
//			ip saddr 10.83.0.0/16 ip daddr != 10.83.0.0/16 ip daddr != 224.0.0.0/4 masquerade
//		}
//		chain hostports {
//			tcp dport 8080 dnat ip to 10.83.0.7:80 comment "<id>"
//		}
//		chain prerouting {
//			type nat hook prerouting priority dstnat
//			fib daddr type local jump hostports
//		}
//		chain output {
//			type nat hook output priority dstnat
//			fib daddr type local jump hostports
//		}
//		chain hairpin {
//			type nat hook postrouting priority srcnat
//			ip saddr 10.83.0.7 ip daddr 10.83.0.7 masquerade comment "<id>"
//			ip saddr 127.0.0.1 ip daddr 10.83.0.7 masquerade comment "<id>"
//		}
//		chain loopback {
//			type filter hook prerouting priority raw
//			iifname "cbrabc123" ip daddr 127.0.0.0/8 drop
//		}
//	}
//
// A port of the host that two containers want leads to the one that was first, for as long as it
// has its rule, as with the plugin portmap. Only packets to an address of the host are forwarded
// (CVE-2025-67499).
package nat
