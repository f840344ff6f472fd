// The extension module fabric._ucx: makes links over UCX and hands them over. `fabric.links.ucx` loads it.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include "bind/gil.hpp"
#include "links/link_capsule.hpp"
#include "ucx/ucx_link.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace fabric::ucx {
namespace {

[[noreturn]] void raise_path_broken(const std::string& why) {
  nb::object error = nb::module_::import_("fabric.errors").attr("PathBrokenError");
  PyErr_SetObject(error.ptr(), error(why).ptr());
  throw nb::python_error();
}

void drop_link(PyObject* capsule) {
  delete static_cast<Link*>(PyCapsule_GetPointer(capsule, link_capsule_name().c_str()));
}

nb::object make_link(int fd, u64 session, const std::string& transports, const std::string& devices) {
  std::unique_ptr<Link> link;
  std::string why;
  {
    bind::ReleasedGil released;
    link = std::make_unique<UcxLink>(fd, session, Options{transports, devices}, why);
    if (!why.empty()) link.reset();
  }
  if (link == nullptr) raise_path_broken(why);
  PyObject* capsule = PyCapsule_New(link.get(), link_capsule_name().c_str(), &drop_link);
  if (capsule == nullptr) throw nb::python_error();
  link.release();
  return nb::steal(capsule);
}

class NoEvents final : public Events {
  void arrived(std::span<const u8>, std::span<const u8>) override {}
  bool announced(std::span<const u8>, u64, void*) override { return false; }
  void fetched(Operation&, const char*) override {}
  void sent(Operation&, const char*) override {}
  void failed(const char*) override {}
};

std::string check(const std::string& transports, const std::string& devices) {
  bind::ReleasedGil released;
  NoEvents events;
  Endpoint endpoint(events);
  return endpoint.open({transports, devices});
}

}  // namespace
}  // namespace fabric::ucx

NB_MODULE(_ucx, module) {
  nb::set_leak_warnings(false);
  module.attr("version") = fabric::ucx::version();
  module.def("make_link", &fabric::ucx::make_link, "fd"_a, "session"_a, "transports"_a = "", "devices"_a = "",
             "A link for Engine.add_link, over a handshaken socket, which it takes (also on failure). `transports` and `devices`\n"
             "are UCX_TLS and UCX_NET_DEVICES. PathBrokenError: UCX has none of them here.");
  module.def("check", &fabric::ucx::check, "transports"_a = "", "devices"_a = "",
             "Why no link can be made with these; empty when one can.");
}
