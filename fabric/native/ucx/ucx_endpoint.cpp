#include "ucx/ucx_endpoint.hpp"

#include <ucp/api/ucp.h>

#include <algorithm>

#include "core/clock.hpp"

namespace fabric::ucx {
namespace {

constexpr unsigned kMessageId = 1;
constexpr u64 kCloseNs = 5'000'000;

std::string words(const char* what, ucs_status_t status) {
  return std::string("ucx: ") + what + ": " + ucs_status_string(status);
}

/// `error` of a completion: null when it went well.
const char* error_of(ucs_status_t status) { return status == UCS_OK ? nullptr : ucs_status_string(status); }

struct Setting { const char *name, *value; };

/// What a link needs of UCX whatever the environment says. Settings of a transport that is not built are refused, and
/// do not matter.
constexpr Setting kSettings[] = {
    {"MM_ERROR_HANDLING", "y"},     // shared memory that tells of a dead peer; without it no such transport is chosen
    {"POSIX_ERROR_HANDLING", "y"},
    {"TCP_CONN_NB", "y"},           // a connect that blocks would stop the engine
    {"VFS_ENABLE", "n"},            // no thread that watches a folder
    {"WARN_UNUSED_ENV_VARS", "n"},
};

/// Whether each of these names is one of `known`.
template <std::size_t N>
bool all_of(const std::string& transports, const char* const (&known)[N]) {
  for (std::size_t at = 0; at < transports.size();) {
    const std::size_t comma = std::min(transports.find(',', at), transports.size());
    const std::string one = transports.substr(at, comma - at);
    if (std::find(std::begin(known), std::end(known), one) == std::end(known)) return false;
    at = comma + 1;
  }
  return !transports.empty();
}

/// The cache of registered memory hooks mmap and munmap of the whole process: for transports that register alone.
bool registers_memory(const std::string& transports) {
  return !all_of(transports, {"tcp", "posix", "sysv", "cma", "self"});
}

/// Where both ends can read each other's memory, UCX handles failures only without doing so, at a third of the rate. The
/// socket tells of a dead peer there, and chunks carry checksums: what is read too late is refused.
bool stays_within_machine(const std::string& transports) { return all_of(transports, {"posix", "sysv", "cma"}); }

}  // namespace

struct Endpoint::Calls {
  static ucs_status_t message(void* arg, const void* header, size_t header_len, void* data, size_t bytes,
                              const ucp_am_recv_param_t* param) {
    Endpoint& self = *static_cast<Endpoint*>(arg);
    const std::span<const u8> head{static_cast<const u8*>(header), header_len};
    if ((param->recv_attr & UCP_AM_RECV_ATTR_FLAG_RNDV) != 0)
      return self.events_.announced(head, bytes, data) ? UCS_INPROGRESS : UCS_OK;
    self.events_.arrived(head, {static_cast<const u8*>(data), bytes});
    return UCS_OK;
  }
  static void sent(void* request, ucs_status_t status, void* what) {
    ucp_request_free(request);
    Operation& operation = *static_cast<Operation*>(what);
    operation.endpoint->events_.sent(operation, error_of(status));
  }
  static void fetched(void* request, ucs_status_t status, size_t, void* what) {
    ucp_request_free(request);
    Operation& operation = *static_cast<Operation*>(what);
    operation.endpoint->events_.fetched(operation, error_of(status));
  }
  static void failed(void* arg, ucp_ep_h, ucs_status_t status) {
    static_cast<Endpoint*>(arg)->events_.failed(ucs_status_string(status));
  }
};

// ------------------------------------------------------------------ made and closed
std::string Endpoint::open(const Options& options) {
  std::string why = start(options);
  if (why.empty()) why = start_worker();
  if (!why.empty()) close();
  return why;
}

std::string Endpoint::start(const Options& options) {
  err_mode_ = stays_within_machine(options.transports) ? UCP_ERR_HANDLING_MODE_NONE : UCP_ERR_HANDLING_MODE_PEER;
  ucp_config_t* config = nullptr;
  ucs_status_t status = ucp_config_read(nullptr, nullptr, &config);
  if (status != UCS_OK) return words("its configuration", status);
  for (const Setting& setting : kSettings) (void)ucp_config_modify(config, setting.name, setting.value);
  // Else a peer could write into memory that this side has given up: in that mode UCX takes nothing back.
  if (reads_peer()) (void)ucp_config_modify(config, "RNDV_SCHEME", "get_zcopy");
  if (!registers_memory(options.transports)) (void)ucp_config_modify(config, "RCACHE_ENABLE", "n");
  if (!options.transports.empty()) status = ucp_config_modify(config, "TLS", options.transports.c_str());
  if (status == UCS_OK && !options.devices.empty()) status = ucp_config_modify(config, "NET_DEVICES", options.devices.c_str());
  if (status == UCS_OK) {
    ucp_params_t params{};
    params.field_mask = UCP_PARAM_FIELD_FEATURES | UCP_PARAM_FIELD_ESTIMATED_NUM_EPS;
    params.features = UCP_FEATURE_AM | UCP_FEATURE_WAKEUP;
    params.estimated_num_eps = 1;
    status = ucp_init(&params, config, &context_);
  }
  ucp_config_release(config);
  const std::string what = "transports '" + (options.transports.empty() ? "all" : options.transports) + "'" +
                           (options.devices.empty() ? "" : " on '" + options.devices + "'");
  return status == UCS_OK ? std::string() : words(what.c_str(), status);
}

std::string Endpoint::start_worker() {
  ucp_worker_params_t params{};
  params.field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE;
  params.thread_mode = UCS_THREAD_MODE_SERIALIZED;  // made by one thread, used by another
  ucs_status_t status = ucp_worker_create(context_, &params, &worker_);
  if (status != UCS_OK) return words("no worker", status);
  status = ucp_worker_get_efd(worker_, &event_fd_);
  if (status != UCS_OK) return words("no event descriptor", status);
  ucp_am_handler_param_t handler{};
  handler.field_mask = UCP_AM_HANDLER_PARAM_FIELD_ID | UCP_AM_HANDLER_PARAM_FIELD_CB | UCP_AM_HANDLER_PARAM_FIELD_ARG;
  handler.id = kMessageId;
  handler.cb = &Calls::message;
  handler.arg = this;
  status = ucp_worker_set_am_recv_handler(worker_, &handler);
  if (status != UCS_OK) return words("no active messages", status);
  status = ucp_worker_get_address(worker_, &address_, &address_len_);
  return status == UCS_OK ? std::string() : words("no address", status);
}

std::string Endpoint::connect(std::span<const u8> address) {
  ucp_ep_params_t params{};
  params.field_mask = UCP_EP_PARAM_FIELD_REMOTE_ADDRESS | UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE | UCP_EP_PARAM_FIELD_ERR_HANDLER;
  params.address = reinterpret_cast<const ucp_address_t*>(address.data());
  params.err_mode = static_cast<ucp_err_handling_mode_t>(err_mode_);
  params.err_handler.cb = &Calls::failed;
  params.err_handler.arg = this;
  const ucs_status_t status = ucp_ep_create(worker_, &params, &endpoint_);
  return status == UCS_OK ? std::string() : words("the peer's worker", status);
}

bool Endpoint::reads_peer() const { return err_mode_ == UCP_ERR_HANDLING_MODE_NONE; }

std::span<const u8> Endpoint::address() const { return {reinterpret_cast<const u8*>(address_), address_len_}; }

void Endpoint::close() {
  if (endpoint_ != nullptr && err_mode_ != UCP_ERR_HANDLING_MODE_NONE) {  // else it ends with the worker
    ucp_request_param_t param{};
    param.op_attr_mask = UCP_OP_ATTR_FIELD_FLAGS;
    param.flags = UCP_EP_CLOSE_FLAG_FORCE;
    void* request = ucp_ep_close_nbx(endpoint_, &param);
    if (UCS_PTR_IS_PTR(request)) {
      const u64 until = monotonic_ns() + kCloseNs;
      while (ucp_request_check_status(request) == UCS_INPROGRESS && monotonic_ns() < until) ucp_worker_progress(worker_);
      ucp_request_free(request);
    }
  }
  if (address_ != nullptr) ucp_worker_release_address(worker_, address_);
  if (worker_ != nullptr) ucp_worker_destroy(worker_);
  if (context_ != nullptr) ucp_cleanup(context_);
  address_ = nullptr;
  endpoint_ = nullptr;
  worker_ = nullptr;
  context_ = nullptr;
  event_fd_ = -1;  // it was the worker's
}

// ------------------------------------------------------------------ messages
Done Endpoint::send(std::span<const u8> header, std::span<const u8> body, Operation& what) {
  what.endpoint = this;
  ucp_request_param_t param{};
  param.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA | UCP_OP_ATTR_FIELD_FLAGS;
  param.cb.send = &Calls::sent;
  param.user_data = &what;
  param.flags = UCP_AM_SEND_FLAG_COPY_HEADER;
  void* request = ucp_am_send_nbx(endpoint_, kMessageId, header.data(), header.size(), body.data(), body.size(), &param);
  if (request == nullptr) return Done::now;
  if (!UCS_PTR_IS_ERR(request)) return Done::later;
  events_.failed(ucs_status_string(UCS_PTR_STATUS(request)));
  return Done::failed;
}

Done Endpoint::fetch(void* ticket, u8* to, u64 bytes, Operation& what) {
  what.endpoint = this;
  ucp_request_param_t param{};
  param.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA | UCP_OP_ATTR_FIELD_MEMORY_TYPE;
  param.cb.recv_am = &Calls::fetched;
  param.user_data = &what;
  param.memory_type = UCS_MEMORY_TYPE_HOST;
  void* request = ucp_am_recv_data_nbx(worker_, ticket, to, bytes, &param);
  if (request == nullptr) return Done::now;
  if (!UCS_PTR_IS_ERR(request)) return Done::later;
  events_.failed(ucs_status_string(UCS_PTR_STATUS(request)));
  return Done::failed;
}

void Endpoint::discard(void* ticket) { ucp_am_data_release(worker_, ticket); }

// ------------------------------------------------------------------ progress
bool Endpoint::progress() { return ucp_worker_progress(worker_) != 0; }

Armed Endpoint::arm() {
  const ucs_status_t status = ucp_worker_arm(worker_);
  if (status == UCS_OK) return Armed::yes;
  if (status == UCS_ERR_BUSY) return Armed::busy;
  events_.failed(ucs_status_string(status));
  return Armed::failed;
}

std::string version() { return ucp_get_version_string(); }

}  // namespace fabric::ucx
