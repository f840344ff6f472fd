// The extension module fabric._gpu: makes links over GPU memory and hands them over, and says what of the driver is here.
// It links against no library of NVIDIA's; `fabric.links.gpu` says which to open.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include "bind/gil.hpp"
#include "core/clock.hpp"
#include "gpu/device_copy.hpp"
#include "gpu/gpu_link.hpp"
#include "gpu/nccl_api.hpp"
#include "links/link_capsule.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace fabric::gpu {
namespace {

[[noreturn]] void raise_path_broken(const std::string& why) {
  nb::object error = nb::module_::import_("fabric.errors").attr("PathBrokenError");
  PyErr_SetObject(error.ptr(), error(why).ptr());
  throw nb::python_error();
}

void drop_link(PyObject* capsule) {
  delete static_cast<Link*>(PyCapsule_GetPointer(capsule, link_capsule_name().c_str()));
}

nb::object make_link(int fd, u64 session, const std::string& kind, int device, const std::string& cuda,
                     const std::string& nccl, double deadline_s) {
  std::unique_ptr<Link> link;
  std::string why;
  {
    bind::ReleasedGil released;
    link = std::make_unique<GpuLink>(fd, session, PathOptions{kind, cuda, nccl, device, u64(deadline_s * 1e9)}, why);
    if (!why.empty()) link.reset();
  }
  if (link == nullptr) raise_path_broken(why);
  PyObject* capsule = PyCapsule_New(link.get(), link_capsule_name().c_str(), &drop_link);
  if (capsule == nullptr) throw nb::python_error();
  link.release();
  return nb::steal(capsule);
}

nb::object devices(const std::string& cuda) {
  std::string why;
  int count = 0, version = 0;
  {
    bind::ReleasedGil released;
    const CudaDriver* driver = CudaDriver::load(cuda, why);
    if (driver != nullptr) {
      why = driver->failed("cuDeviceGetCount", driver->device_count(&count));
      driver->driver_version(&version);
    }
  }
  return nb::make_tuple(count, version, why);
}

nb::object read_device(const std::string& cuda, u64 to, u64 from, u64 bytes, u64 after, double deadline_s) {
  std::string why;
  Copied copied = Copied::failed;
  {
    bind::ReleasedGil released;
    const u64 deadline_ns = monotonic_ns() + u64(deadline_s * 1e9);
    if (const CudaDriver* driver = CudaDriver::load(cuda, why); driver != nullptr)
      copied = copy_to_host(*driver, reinterpret_cast<u8*>(to), from, bytes, after, deadline_ns, why);
  }
  return nb::make_tuple(int(copied), why);
}

nb::object fill_device(const std::string& cuda, int device, u64 from, u64 bytes, double deadline_s) {
  std::string why;
  Copied copied = Copied::failed;
  auto made = std::make_unique<DeviceCopy>();
  {
    bind::ReleasedGil released;
    const u64 deadline_ns = monotonic_ns() + u64(deadline_s * 1e9);
    if (const CudaDriver* driver = CudaDriver::load(cuda, why); driver != nullptr)
      copied = made->open(*driver, device, reinterpret_cast<const u8*>(from), bytes, deadline_ns, why);
    if (copied != Copied::all) made.reset();
  }
  nb::object memory = made == nullptr ? nb::none() : nb::cast(made.release(), nb::rv_policy::take_ownership);
  return nb::make_tuple(memory, int(copied), why);
}

nb::object nccl(const std::string& library) {
  std::string why;
  int number = 0;
  {
    bind::ReleasedGil released;
    NcclApi::load(library, number, why);
  }
  return nb::make_tuple(number, why);
}

}  // namespace
}  // namespace fabric::gpu

NB_MODULE(_gpu, module) {
  nb::set_leak_warnings(false);
  using namespace fabric::gpu;
  module.def("make_link", &make_link, "fd"_a, "session"_a, "kind"_a, "device"_a, "cuda"_a, "nccl"_a, "deadline_s"_a = 5.0,
             "A link for Engine.add_link, over a handshaken socket, which it takes (also on failure). `kind` is cuda_ipc or nccl,\n"
             "`cuda` and `nccl` name the libraries. PathBrokenError: one of them, or the GPU, is not there.");
  module.def("devices", &devices, "cuda"_a, "(number of GPUs, version of the driver's API, why there is none) by that library.");
  module.def("nccl", &nccl, "nccl"_a, "(version such as 22903, why there is none) by that library.");
  nb::class_<DeviceCopy>(module, "DeviceCopy", "Memory of a GPU; freed with this.")
      .def_prop_ro("pointer", &DeviceCopy::pointer)
      .def_prop_ro("device", &DeviceCopy::ordinal);
  module.def("read_device", &read_device, "cuda"_a, "to"_a, "source"_a, "bytes"_a, "after"_a, "deadline_s"_a,
             "Copy a GPU's memory to host address `to`, after the work of stream `after` (0: none). Returns (0 done, 1 too late,\n"
             "2 failed; why).");
  module.def("fill_device", &fill_device, "cuda"_a, "device"_a, "source"_a, "bytes"_a, "deadline_s"_a,
             "Memory of a GPU with the bytes of host address `source`. Returns (DeviceCopy or None, as read_device, why).");
  module.def("remains", &remains, "Closed connections whose memory is kept for a peer that has not let go of it.");
}
