"""FelixConfiguration: every field that Felix has, with the values that it takes.

Source: api/pkg/apis/projectcalico/v3/felixconfig.go, validator.go (validateFelixConfigSpec and what it calls).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from libcalico.net import IPV4, IPV6
from libcalico.validation.bgp import CLUSTER_ROUTES, PRIORITY, SWITCH
from libcalico.validation.either import Port, SmallOrText, Span
from libcalico.validation.problem import ABSENT
from libcalico.validation.shape import (
    Field,
    Flag,
    ListOf,
    MapOf,
    Obj,
    Shape,
    Tell,
    Text,
    View,
    Whole,
    always,
    given,
    need,
)
from libcalico.validation.text import (
    address,
    both,
    conntrack_timeout,
    decimal_duration,
    duration,
    interface,
    interface_filter,
    interface_name,
    key_value_list,
    label,
    log_level,
    matching,
    metrics_host,
    network,
    parse_duration_ns,
    plain_duration,
    regular_expression,
    switch_list,
    word,
)

_MOST_TABLES = 0xFFFF


def _names(text: str) -> list[str]:
    return text.split()


_FLAGS = _names("""
    useInternalDataplaneDriver ipv6Support ipipEnabled vxlanEnabled allowVXLANPacketsFromWorkloads
    allowIPIPPacketsFromWorkloads endpointReportingEnabled disableConntrackInvalidCheck healthEnabled
    prometheusMetricsEnabled prometheusGoMetricsEnabled prometheusProcessMetricsEnabled
    prometheusWireGuardMetricsEnabled usageReportingEnabled removeExternalRoutes debugDisableLogDropping
    sidecarAccelerationEnabled xdpEnabled genericXDPEnabled bpfEnabled bpfDisableUnprivileged
    bpfConnectTimeLoadBalancingEnabled bpfKubeProxyIptablesCleanupEnabled bpfHostConntrackBypass
    bpfIPFragmentReassemblyEnabled bpfPolicyDebugEnabled flowLogsCollectorDebugTrace routeSyncDisabled
    wireguardEnabled wireguardEnabledV6 wireguardThreadingEnabled wireguardHostEncryptionEnabled requireMTUFile
""")
_PLAIN_SPANS = _names("""
    routeRefreshInterval interfaceRefreshInterval iptablesRefreshInterval iptablesPostWriteCheckInterval
    iptablesLockProbeInterval ipsetsRefreshInterval xdpRefreshInterval netlinkTimeout reportingInterval reportingTTL
    endpointReportingDelay usageReportingInitialDelay usageReportingInterval debugSimulateCalcGraphHangAfter
    debugSimulateDataplaneHangAfter debugSimulateDataplaneApplyDelay bpfIPFragTimeout bpfKubeProxyMinSyncPeriod
    flowLogsFlushInterval wireguardKeepAlive
""")
_ANY_SPANS = _names("dataplaneWatchdogTimeout nftablesRefreshInterval localSubnetL2ReachabilityRefreshInterval")
_ANY_NUMBERS = _names("""
    maxIpsetSize metadataPort ipipMTU vxlanMTU vxlanMTUV6 vxlanPort vxlanVNI healthPort prometheusMetricsPort
    deviceRouteProtocol bpfMapSizeNATFrontend bpfMapSizeNATBackend bpfMapSizeNATAffinity bpfMapSizeRoute
    bpfMapSizeConntrack bpfMapSizePerCpuConntrack bpfMapSizeIPSets bpfMapSizeIfState bpfExportBufferSizeMB
    wireguardMTU wireguardMTUV6
""")
_NUMBERS = {
    "logActionRateLimitBurst": (0, 9999),
    "iptablesMarkMask": (0, 0xFFFFFFFF),
    "nftablesMarkMask": (0, 0xFFFFFFFF),
    "debugPort": (0, 65535),
    "bpfExtToServiceConnmark": (0, 0xFFFFFFFF),
    "bpfKubeProxyHealthzPort": (0, 65535),
    "bpfMapSizeConntrackCleanupQueue": (1, 2**63 - 1),
    "wireguardListeningPort": (1, 65535),
    "wireguardListeningPortV6": (1, 65535),
    "wireguardRoutingRulePriority": (1, 32765),
    "goGCThreshold": (-1, 2**63 - 1),
    "goMemoryLimitMB": (-1, 2**63 - 1),
    "goMaxProcs": (-1, 2**63 - 1),
    "bpfMaglevMaxEndpointsPerService": (1, 3000),
    "bpfMaglevMaxServices": (1, 3000),
}
_ROUTE_PRIORITIES = (
    "ipv4NormalRoutePriority",
    "ipv4ElevatedRoutePriority",
    "ipv6NormalRoutePriority",
    "ipv6ElevatedRoutePriority",
)
_ANY_TEXTS = _names("""
    dataplaneDriver metadataAddr interfacePrefix interfaceExclude logFilePath endpointStatusPathPrefix
    policySyncPathPrefix debugMemoryProfilePath bpfCTLBLogFilter cgroupV2Path
""")
_GIVEN_TEXTS = _names("""
    healthHost prometheusMetricsCAFile prometheusMetricsCertFile prometheusMetricsKeyFile debugHost
    flowLogsGoldmaneServer
""")
_WORDS = {  # in any case; empty is allowed
    "chainInsertMode": ("Insert", "Append"),
    "defaultEndpointToHostAction": ("Drop", "Accept", "Return"),
    "iptablesFilterAllowAction": ("Accept", "Return"),
    "iptablesMangleAllowAction": ("Accept", "Return"),
    "iptablesFilterDenyAction": ("Drop", "Reject"),
    "nftablesFilterAllowAction": ("Accept", "Return"),
    "nftablesMangleAllowAction": ("Accept", "Return"),
    "nftablesFilterDenyAction": ("Drop", "Reject"),
    "bpfLogLevel": ("Off", "Info", "Debug"),
    "bpfExternalServiceMode": ("Tunnel", "DSR"),
    "bpfMapSizeConntrackScaling": ("Disabled", "DoubleIfFull"),
    "bpfEnforceRPF": ("Disabled", "Strict", "Loose"),
    "routeSource": ("WorkloadIPs", "CalicoIPAM"),
}
_PLAIN_ENUMS = {
    "ipForwarding": ("Enabled", "Disabled"),
    "bpfConntrackLogLevel": ("Off", "Debug"),
    "bpfRedirectToPeer": ("Enabled", "Disabled"),
    "bpfProfiling": ("Enabled", "Disabled"),
    "serviceLoopPrevention": ("Drop", "Reject", "Disabled"),
    "workloadSourceSpoofing": ("Disabled", "Any"),
}
_GIVEN_ENUMS = {
    "iptablesBackend": ("Legacy", "NFT", "Auto"),
    "prometheusMetricsClientAuth": (
        "RequireAndVerifyClientCert",
        "RequireAnyClientCert",
        "VerifyClientCertIfGiven",
        "NoClientCert",
    ),
    "natOutgoingExclusions": ("IPPoolsOnly", "IPPoolsAndHostIPs"),
    "nftablesMode": ("Disabled", "Enabled", "Auto"),
    "nftablesFlowTableOffload": ("All", "Disabled"),
    "bpfOverlayHostSourceIP": ("TunnelAddress", "HostAddress"),
    "bpfJITHardening": ("Auto", "Strict"),
    "bpfConntrackMode": ("Auto", "Userspace", "BPFProgram"),
    "bpfConnectTimeLoadBalancing": ("TCP", "Enabled", "Disabled"),
    "bpfHostNetworkedNATWithoutCTLB": ("Enabled", "Disabled"),
    "istioAmbientMode": ("Enabled", "Disabled"),
    "flowLogsPolicyEvaluationMode": ("None", "Continuous"),
    "bpfAttachType": ("TC", "TCX", "Netkit"),
    "flowLogsLocalReporter": ("Disabled", "Enabled"),
    "awsSrcDstCheck": ("DoNothing", "Enable", "Disable"),
    "localSubnetL2Reachability": ("Disabled", "PodsAndLoadBalancers"),
}
_PATTERNS = (
    "logDebugFilenameRegex",
    "nftablesFlowTableDataIfacePattern",
    "bpfDataIfacePattern",
    "bpfL3IfacePattern",
    "bpfDisableGROForIfaces",
    "mtuIfacePattern",
)
_CONNTRACK_TIMEOUTS = _names("""
    creationGracePeriod tcpSynSent tcpEstablished tcpFinsSeen tcpResetSeen udpTimeout genericTimeout icmpTimeout
""")


def _not_negative(text: str) -> str | None:
    return duration(text) or ("must not be negative" if (parse_duration_ns(text) or 0) < 0 else None)


def _range_fits(most: int, view: View, tell: Tell) -> None:
    first, last = view.get("min"), view.get("max")
    if first is not None and last is not None and not 1 <= first <= last <= most:
        tell("", ABSENT, f"must be a range of route tables from 1 to {most}, min not greater than max")


def _not_too_many_tables(view: View, tell: Tell) -> None:
    if "routeTableRange" in view and "routeTableRanges" in view:
        tell("routeTableRange", ABSENT, "must not be set together with routeTableRanges")
    ranges = [r for r in view.get("routeTableRanges", []) if isinstance(r, dict) and "min" in r and "max" in r]
    if sum(r["max"] - r["min"] + 1 for r in ranges) > _MOST_TABLES:
        tell("routeTableRanges", view["routeTableRanges"], f"must have at most {_MOST_TABLES} tables together")


_ipv4 = both(address(IPV4), lambda text: "must be an IPv4 address in its own form" if ":" in text else None)
_region = both(
    lambda text: "must have at most 46 characters" if len(text) > 63 - len("openstack-region-") else None, label
)
_host_ports = ListOf(Obj({"protocol": Text(), "port": always(Whole(0, 65535), 0), "net": Text()}))
_bounds = {"min": need(Whole(), zero_counts=True), "max": need(Whole(), zero_counts=True)}


def _fields() -> Iterator[tuple[str, Shape | Field]]:
    for names, field in (
        (_FLAGS, given(Flag())),
        (_PLAIN_SPANS, given(Span(plain_duration))),
        (_ANY_SPANS, given(Span())),
        (_ANY_NUMBERS, given(Whole())),
        (_ROUTE_PRIORITIES, given(PRIORITY)),
        (_ANY_TEXTS, Field(Text())),
        (_GIVEN_TEXTS, given(Text())),
        (_PATTERNS, Field(Text(regular_expression))),
        (("logSeverityFile", "logSeverityScreen", "logSeveritySys"), Field(Text(log_level))),
        (("wireguardInterfaceName", "wireguardInterfaceNameV6"), Field(Text(interface))),
        (("failsafeInboundHostPorts", "failsafeOutboundHostPorts"), given(_host_ports)),
    ):
        yield from ((name, field) for name in names)
    yield from ((name, given(Whole(least, most))) for name, (least, most) in _NUMBERS.items())
    yield from ((name, Text(word(*words))) for name, words in _WORDS.items())
    yield from ((name, Text(one_of=words)) for name, words in _PLAIN_ENUMS.items())
    yield from ((name, given(Text(one_of=words))) for name, words in _GIVEN_ENUMS.items())


FELIX_CONFIGURATION = Obj(
    {
        **dict(_fields()),
        "nodeSelector": given(Text(most=1024)),
        "featureDetectOverride": Text(switch_list),
        "featureGates": Text(key_value_list),
        "openstackRegion": Text(_region),
        "logPrefix": Text(
            matching("[a-zA-Z0-9%: /_-]*", "must consist of letters, digits, blanks and the characters %:/_-")
        ),
        "logActionRateLimit": given(
            Text(matching(r"[1-9]\d{0,3}/(second|minute|hour|day)", "must be a rate such as 10/second"))
        ),
        "healthTimeoutOverrides": ListOf(
            Obj(
                {
                    "name": always(
                        Text(matching("[a-zA-Z0-9_ -]+", "must consist of letters, digits, blanks, '_' and '-'")), ""
                    ),
                    "timeout": always(Span(_not_negative), "0s"),
                }
            )
        ),
        "prometheusMetricsHost": Text(metrics_host),
        "kubeNodePortRanges": given(ListOf(Port(named=False), most=7)),
        "natPortRange": given(Port()),
        "bpfPSNATPorts": given(Port()),
        "natOutgoingAddress": Text(_ipv4, most=45),
        "deviceRouteSourceAddress": Text(_ipv4, most=45),
        "deviceRouteSourceAddressIPv6": Text(address(IPV6), most=45),
        "programClusterRoutes": given(CLUSTER_ROUTES),
        "externalNodesList": given(ListOf(Text(network(IPV4, masked=False)))),
        "iptablesNATOutgoingInterfaceFilter": Text(interface_filter),
        "bpfConntrackTimeouts": Obj(dict.fromkeys(_CONNTRACK_TIMEOUTS, given(Text(conntrack_timeout)))),
        "bpfLogFilters": given(MapOf(Text(), key=interface_name)),
        "bpfDSROptoutCIDRs": given(ListOf(Text(network(masked=False)))),
        "bpfExcludeCIDRsFromNAT": given(ListOf(Text(network(masked=False)))),
        "bpfForceTrackPacketsFromIfaces": given(ListOf(Text(interface_filter))),
        "istioDSCPMark": given(SmallOrText()),
        "routeTableRange": Obj(_bounds, partial(_range_fits, 250)),
        "routeTableRanges": given(ListOf(Obj(_bounds, partial(_range_fits, 0xFFFFFFFF)))),
        "liveMigrationRouteConvergenceTime": given(Span(decimal_duration)),
        "floatingIPs": given(SWITCH),
        "windowsManageFirewallRules": given(SWITCH),
    },
    _not_too_many_tables,
)


def node_selector_where_it_belongs(view: View, tell: Tell) -> None:
    """The configurations of the cluster and of one node select no nodes (a rule of the whole object)."""
    found = view.get("metadata", {}).get("name", "")
    if "nodeSelector" in view.get("spec", {}) and (found == "default" or found.startswith("node.")):
        tell("spec.nodeSelector", ABSENT, "must not be set in default, nor in a node's own configuration")
