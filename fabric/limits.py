"""Every limit of the fabric, with its unit in its name.

The first block mirrors `fabric/native/core/layout.hpp` name for name (`kLaneBytes` → `LANE_BYTES`); a tidy test
compares them. Reaching a limit raises `CapacityError` (or the error named beside it) and is counted.
"""

from __future__ import annotations

from typing import Final

# ---- shared memory (layout.hpp §limits)
RECORD_VERSION: Final = 1
RECORD_HEADER_BYTES: Final = 64
INLINE_BYTES_MAX: Final = 4096
RECORD_BYTES_MAX: Final = 8192
SEGMENTS_PER_RECORD_MAX: Final = 64
LANE_BYTES: Final = 256 * 1024
FLOW_PENDING_MAX: Final = 384 * 1024
RETURN_ENTRIES: Final = 4096
LANES_PER_PORT_MAX: Final = 1024
ENDPOINTS_PER_PORT_MAX: Final = 2048
FLOWS_IN_PER_PORT_MAX: Final = 1024
OUTSTANDING_PER_ENDPOINT: Final = 2048
FLOW_SPAN_MAX: Final = 262144  # messages of a flow since its oldest that has not ended
HELD_PER_PORT: Final = 8192
SLOTS_PER_SEGMENT_MAX: Final = 1024
LINK_PING_MS: Final = 1000  # a data connection on which nothing was heard this long is asked
LINK_SILENT_MS: Final = 2500  # and broken when it is silent this long; below LEASE_MS
TRANSFER_STALL_MS: Final = 2000  # chunks that left and are not acknowledged go again
TRANSFER_STALLS_MAX: Final = 3  # in a row, then the connections of the session are broken
TRANSFER_SILENT_MS: Final = 10000  # a granted transfer without chunks breaks the connection
UNKNOWN_FLOWS_MAX: Final = 4096  # flows that a peer names before they are set up, per session
REPORTS_UNACKED_MAX: Final = 16384  # return entries on their way, per session and direction
CHUNKS_BAD_MAX: Final = 16  # corrupted chunks of one transfer, then it has failed
CACHE_LINE: Final = 64
KEY_BYTES_MAX: Final = 512  # routing key of a message
TENSORS_PER_MESSAGE_MAX: Final = 64
PINS_PER_SENDER_MAX: Final = 65536  # keys pinned to a flow, per sender

# ---- names and text
NAME_BYTES_MAX: Final = 128  # node, module, channel, type, field, plugin and policy names
ERROR_TEXT_BYTES_MAX: Final = 4096
SOCKET_PATH_BYTES_MAX: Final = 107  # sun_path less its terminator

# ---- messages
FIELDS_PER_TYPE_MAX: Final = 64  # those of inner records included
TENSOR_RANK_MAX: Final = 16
STRING_BYTES_MAX: Final = 1 << 20  # one str or bytes scalar
META_BYTES_MAX: Final = 4 << 20  # all scalars of one message, encoded
MESSAGE_BYTES_MAX: Final = 1 << 30  # tensors of one message together
SCHEMA_BYTES_MAX: Final = 64 << 10
RECORD_DEPTH_MAX: Final = 4  # records within records
SCHEMAS_PER_CHANNEL_MAX: Final = 16  # versions of its type that a channel's ends may have together

# ---- arenas of a client
SEGMENT_BYTES_MIN: Final = 1 << 20  # slots are pooled into segments of at least this size
SEGMENT_BYTES_MAX: Final = 2 << 30
SLOT_BYTES_MIN: Final = 8 << 10
SEGMENTS_PER_PORT_MAX: Final = 256
SEGMENT_IDLE_S: Final = 10.0  # an own segment with every slot free this long is given back, unless
SEGMENT_KEPT_S: Final = 60.0  # it is among those that may stay: new pages are dear
SEGMENTS_KEPT_SHARE: Final = 1 / 128  # of the tenant's arena bytes, for each port
MEMORY_SPARE: Final = 0.25  # of the memory has to be available for that

# ---- one-sided leases
LEASES_PER_PORT_MAX: Final = 64  # arrays one port exposes
LEASES_MAPPED_MAX: Final = 64  # leases of others that one port has mapped
LEASE_RANGES_MAX: Final = 4096  # of one get or put
LEASE_PART_BYTES: Final = 8 << 20  # of a lease of another node, in one message
LEASE_FIND_S: Final = 2.0  # an exposer on another node that is not reached by then is gone

# ---- the cache of encoder outputs (one per tenant and node)
CACHE_BYTES: Final = 256 << 20  # of data, unless --cache-bytes says otherwise
CACHE_BYTES_RANGE: Final = (1 << 20, 1 << 40)
CACHE_ENTRIES_MAX: Final = 4096
CACHE_USERS_MAX: Final = 256  # processes with counters of their own
CACHE_SHARE_MAX: Final = 0.25  # of the cache, for one entry
CACHE_LOCK_S: Final = 0.05  # a put waits this long for another one, then it keeps nothing

# ---- control connections (attach, node to node)
FRAME_BYTES_MAX: Final = 1 << 20
FRAME_FDS_MAX: Final = 8
FRAME_BACKLOG_BYTES_MAX: Final = 8 << 20  # written by us, unread by the peer: then it is broken
CONTROL_REQUESTS_MAX: Final = 256  # unanswered requests of one client
PROTOCOL_QUOTE_BYTES_MAX: Final = 64

# ---- handshake between nodes (docs/WIRE.md §5)
HANDSHAKE_S: Final = 5.0
HANDSHAKES_MAX: Final = 64  # at once, of one listener
CONNECT_S: Final = 5.0
ACCEPT_RETRY_S: Final = 0.1
HANDSHAKE_BYTES_MAX: Final = 1024  # one message
HANDSHAKE_REASON_BYTES_MAX: Final = 200

# ---- rails between two nodes
RAILS_PER_PEER_MAX: Final = 8  # addresses of a node; kRailsMax of paths/marginal_gain.hpp
RAIL_DIAL_MS: Final = 200  # an attempt to connect to one rail of several that was up before
RAIL_LOOK_MS: Final = (
    50,
    500,
)  # between looks at the interfaces while one of ours is down: at first, later
RAIL_PAUSE_MS: Final = (50, 500)  # between attempts: first, longest
CONTROL_SILENT_MS: Final = (
    1000  # a control connection beside which there are others, unconfirmed this long, is broken
)
CONTROL_LOOK_MS: Final = 250  # an unanswered lease is asked about the path so long after

# ---- credit a receiver grants by default (per flow)
CREDIT_MESSAGES: Final = 256
CREDIT_BYTES: Final = 64 << 20

# ---- requests and routes
REQUESTS_IN_FLIGHT_MAX: Final = 1024  # per requester
STREAM_REPLIES_QUEUED_MAX: Final = 1024  # per streamed request, unread by its caller
ROUTE_PIN_TTL_S: Final = 60.0
ROUTE_ASK_S: Final = 1.0
ROUTE_DECIDE_S: Final = 0.5  # of it, what a policy's stage host may take
ROUTE_RETRY_S: Final = 1.0  # so long a fallback's choice holds before the policy is asked again
ROUTE_PAUSE_S: Final = 5.0  # a policy that did not answer at all is left alone so long
ROUTE_BYTES_MAX: Final = 4096  # of a policy's name and parameters
ROUTE_BATCH_MAX: Final = 256  # messages that a policy of per="batch" decides about in one call
ROUTE_TABLE_MS: Final = 250  # what senders know of other senders' load is renewed this often

# ---- waits
DEFAULT_DEADLINE_S: Final = 30.0
DEADLINE_S_MAX: Final = 86_400.0
ATTACH_S: Final = 10.0
RECONNECT_S: Final = 10.0  # the keeper ends modules when no daemon was there this long
RECONNECT_BACKOFF_S: Final = (0.02, 0.5)  # first, largest
CONTROL_CALL_S: Final = 10.0
CLOSE_S: Final = 1.0
HEARTBEAT_MS: Final = 100
SUSPECT_MS: Final = 1000
LEASE_MS: Final = 3000
LIVENESS_MS: Final = 250  # heartbeats are looked at this often

# ---- fabric.yaml
CONFIG_BYTES_MAX: Final = 1 << 20
CONFIG_NODES_MAX: Final = 100_000  # YAML values, anchors followed
CONFIG_PROBLEMS_MAX: Final = 20  # mistakes printed for one file
CHANNELS_MAX: Final = 1024
MODULES_MAX: Final = 256
PLUGINS_MAX: Final = 64
REPLICAS_MAX: Final = 64
CHANNEL_WEIGHT_MAX: Final = 100  # kChannelWeightMax of engine/bulk_queue.hpp
TRANSFORMS_PER_CHANNEL_MAX: Final = 8
DESCRIBE_S: Final = (
    20.0  # importing the classes of a file's modules, to see their channels, may take this long
)

# ---- control API and fabricctl
CONTROL_MESSAGE_BYTES_MAX: Final = 8 << 20  # one gRPC request or answer
CONTROL_ERROR_BYTES_MAX: Final = 8 << 10  # error detail, carried in trailing metadata
CONTROL_S: Final = 30.0  # a verb of fabricctl, unless it says otherwise
NODE_UP_S: Final = 30.0  # fabricctl up waits this long for the health service
NODE_DOWN_S: Final = (
    20.0  # fabricctl down waits this long; the keeper kills what is left after 17 s
)
LOG_LINES_MAX: Final = 10_000

# ---- plugins and stage hosts
PLUGIN_SOURCE_BYTES_MAX: Final = 512 << 10  # one plugin file, as text
EXPORTS_PER_PLUGIN_MAX: Final = 64
PLUGIN_UNLOAD_S: Final = 20.0  # a call waits this long for the chains of a plugin to end
CANARY_S: Final = 30.0  # a canary that names no time compares this long
CANARY_QUEUE: Final = 16  # batches on their way to a canary; more are not compared
CANARY_S_MAX: Final = 86_400.0
PLUGIN_VERSIONS_MAX: Final = 8  # kept of one plugin, to roll back to
STAGE_MEMORY_SLACK_BYTES: Final = (
    256 << 20
)  # a stage host's own, beside what its transforms declare
STAGE_OUTPUT_BYTES: Final = 256 << 10  # a second, of what plugins print; the rest is counted
VIEWS_KEPT_MAX: Final = (
    16  # messages whose views a transform keeps after it returned; their slots wait for it
)
STAGES_PER_HOST_MAX: Final = 64  # chains one stage host runs
TRANSFORM_BATCH_MAX: Final = 64  # messages given to one `apply`
TRANSFORM_WAITING_MAX: Final = (
    256  # inputs a chain holds unfinished (deferred, or behind one of its key)
)
TRANSFORM_OUTPUTS_MAX: Final = 64  # messages that one input may become
TRANSFORM_SLACK_BYTES: Final = (
    256  # output bytes allowed beyond max_expansion: scalars have no bound of their own
)
TRANSFORM_DEFER_S_MAX: Final = 5.0
TRANSFORM_PARAMETERS_MAX: Final = 32  # of one entry of a channel's `transforms`
CHAIN_EXPANSION_MAX: Final = 256  # what a message may grow by along a chain
CODEC_PARTS_MAX: Final = 8  # buffers that one encoded tensor may have
CODEC_INFO_BYTES_MAX: Final = 4096  # what a codec says beside them, as MessagePack
CODEC_BENCH_S: Final = 20.0  # for measuring codecs on what was copied
CODEC_SAMPLE_BYTES: Final = 16 << 20  # copied of a channel's traffic for that
CODEC_DECISIONS_KEPT: Final = 32  # of a sender, with their terms, for `fabricctl why`
STAGE_DRAIN_S: Final = 3.0  # a stopped chain finishes what it holds at most this long

# ---- joins
JOIN_INPUTS_MAX: Final = 32  # of one join; a bit each in its journal
JOIN_ENTRIES_MAX: Final = 4096  # requests that wait in one join; its parts are held messages
JOIN_BYTES_MAX: Final = 64 << 30
JOIN_REMEMBERED_MAX: Final = 65_536  # requests that ended, by key: what comes of them now is late
JOIN_DOUBT_S: Final = (
    5.0  # after a kill, the daemon says within this whether an output was accepted
)
JOINS_MAX: Final = 64  # on one node

# ---- module hosts
MODULE_STOP_GRACE_S: Final = (
    5.0  # a stopped module drains at most this long, unless the stop says otherwise
)
MODULE_DRAIN_S: Final = 25.0  # a drained or scaled-down replica may finish what it holds this long
MODULE_POLL_S: Final = 0.5  # a handler thread looks this often whether the module is stopping

# ---- cluster and node tables (registry, daemon)
NODES_MAX: Final = 256
ENDPOINTS_MAX: Final = 16_384  # of the whole cluster
ARCHIVED_ENDPOINTS_MAX: Final = 10_000  # older final counts are added up per channel
PORTS_PER_NODE_MAX: Final = 512
FLOWS_PER_ENDPOINT_MAX: Final = 256
ARENA_BYTES_PER_TENANT_MAX: Final = (
    64 << 30
)  # segments of one uid on one node, unless --arena-bytes says less
ARENA_RESERVE: Final = 0.125  # of these bytes, for control and token channels alone
DESCRIPTORS_RESERVED: Final = 32  # of the daemon, for what runs: nothing new is made out of them
CREDIT_MESSAGES_MIN: Final = (
    4  # a flow gets at least this much, however many flows its receiver has
)
PUSH_S: Final = 5.0  # a client answers what the daemon pushes within this
FLOW_RETRY_S: Final = 0.5  # before a flow that could not be set up is tried again
ADOPTION_S: Final = 10.0  # a dead sender's messages may still be consumed this long, then they fail
RETURN_DRAIN_S: Final = 0.25  # how long a dead receiver's last reports may take to be read
AUDIT_FREEZE_S: Final = 0.5
AUDIT_TRIES: Final = 3
AUDIT_PART_BYTES: Final = 512 << 10  # of a snapshot, in one frame
AUDIT_DIFFERENCES_MAX: Final = 100
BYE_S: Final = 2.0  # after its bye, a process may take this long to stop touching its port
EVENTS_KEPT: Final = 512
VIEW_HELD_WARN_S: Final = 10.0  # a view that is held longer raises one event
HOLDERS_SHOWN: Final = 20  # holders of views in a status, oldest first
METRICS_CONNECTIONS_MAX: Final = 16  # scrapes at once; more are turned away
METRICS_REQUEST_BYTES_MAX: Final = 8 << 10  # of a scrape's request, its headers included
METRICS_S: Final = 5.0  # a client of the metrics may take this long to ask, and this long to read
METRICS_FRESH_S: Final = 0.25  # scrapes closer than this to a look share it
LOG_BYTES_MAX: Final = 4 << 20  # of the daemon, a module, a plugin; rotated once
DRAIN_S: Final = 5.0  # modules and stage hosts may take this long to leave when the node stops

# ---- measurements on a live deployment (fabricctl bench)
BENCH_SECONDS: Final = (0.5, 60.0)  # a budget of time: least, most
BENCH_BYTES: Final = (1 << 20, 64 << 30)  # of payload: least, most
BENCH_MEMORY_BYTES: Final = (4 << 20, 4 << 30)  # of arenas and buffers on each node: least, most
BENCH_START_S: Final = 20.0  # both ends of an edge are ready and have met within this
PROBES_MAX: Final = 8  # ends of measurements on one node
PROBE_SETTLE_S: Final = 5.0  # a probe's port may take this long to be settled once it has left
TRANSIENT_IDLE_S: Final = 30.0  # a transient channel without ends is gone after this
PATH_PROBES_MAX: Final = 16  # connections of other nodes' probes that one node serves at once
PATH_PROBE_TRIPS_MAX: Final = 10_000  # of one probe of one rail
PATH_PROBE_BYTES_MIN: Final = 256 << 10  # less payload says nothing of a rate
PATH_PROBE_BYTES_MAX: Final = 1 << 30  # of one probe of one rail
PATH_PROBE_SECONDS: Final = (0.05, 30.0)  # for the payload of one rail: least, most
PATH_PROBE_WAIT_S: Final = 3.0  # to connect, and for what a probe takes beside its payload
RAIL_CHANGES_KEPT: Final = 32  # changes of state that a node remembers of each rail
RAIL_CHANGES_TOLD: Final = 8  # of one rail within RAIL_CHANGES_TOLD_S; what flaps more is counted
RAIL_CHANGES_TOLD_S: Final = 10.0

# ---- plans and generations
PLAN_BYTES_MAX: Final = (
    768 << 10
)  # one plan with the text of its plugins; it crosses control in one frame
PLANS_KEPT: Final = 64  # generations in the history; older ones are forgotten
GENERATIONS_MAX: Final = 4  # live at once: the current one and those with messages in flight
GENERATION_WAIT_S: Final = 10.0  # an apply waits this long for the oldest generation to close
GENERATION_POLL_S: Final = (
    0.02,
    0.5,
)  # between looks whether an old generation is empty: first, longest
VERIFY_S: Final = 30.0  # a node may take this long to load what a plan brings, aside of its traffic
MODULE_READY_S: Final = (
    60.0  # a module that a plan starts is ready within this, or the plan is rolled back
)
APPLY_S: Final = 150.0  # a whole apply, roll back included

# ---- topology: discovery and files from elsewhere
NETLINK_ANSWER_S: Final = 1.0  # the kernel answers a question about interfaces within this
NETLINK_DATAGRAM_BYTES: Final = 64 << 10  # it puts at most 32 KiB in one
NETLINK_BUFFER_BYTES: Final = 1 << 20  # of changes that nobody has read yet; then all is asked anew
NETLINK_READS_MAX: Final = 64  # datagrams in one turn of the loop
TOPOLOGY_FILE_BYTES_MAX: Final = 32 << 20  # XML or JSON; hwloc's of a node with 256 cores has 1 MiB
TOPOLOGY_ELEMENTS_MAX: Final = 200_000
TOPOLOGY_DEPTH_MAX: Final = 64
TOPOLOGY_CPUS_MAX: Final = 65_536  # the highest number of a CPU, less one
SYSFS_FILE_BYTES_MAX: Final = 64 << 10  # read of one file of a sysfs
SYSFS_ROOTS_MAX: Final = 16  # folders looked into for the sys/ of a copy
SYSFS_ARCHIVE_MEMBERS_MAX: Final = 1_000_000
SYSFS_ARCHIVE_BYTES_MAX: Final = 2 << 30  # that the members of an archive claim to have

# ---- simulation of rails
SIMULATION_PLAN_BYTES_MAX: Final = 4 << 20  # of one schedule, as text
SIMULATION_SEEDS_AT_ONCE: Final = 200  # schedules between two looks for an interrupt
SIMULATION_NODES_MAX: Final = 4096
SIMULATION_REQUESTS_MAX: Final = 1_000_000  # of a trace
SIMULATION_LINE_BYTES_MAX: Final = 1 << 20  # one request with its prefix blocks
SIMULATION_TRANSFER_BYTES_MAX: Final = 1 << 40
