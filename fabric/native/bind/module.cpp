// The extension module: declares the submodule binders, nothing else.
#include <nanobind/nanobind.h>

NB_MODULE(_native, module) {
  module.attr("record_version") = 1;
}
