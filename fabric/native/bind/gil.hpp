// Giving the interpreter's lock away for a call, and surviving that the interpreter ends meanwhile.
#pragma once

#include <Python.h>
#include <cxxabi.h>
#include <unistd.h>

namespace fabric::bind {

/// Without the lock for a scope. An interpreter that ends makes threads that ask for its lock exit by unwinding
/// (before 3.14), which no C++ frame survives: such a thread sleeps here instead, until the process is gone.
class ReleasedGil {
 public:
  ReleasedGil() : state_(PyEval_SaveThread()) {}
  ~ReleasedGil() {
    try {
      PyEval_RestoreThread(state_);
    } catch (abi::__forced_unwind&) {
      for (;;) ::pause();
    }
  }
  ReleasedGil(const ReleasedGil&) = delete;
  ReleasedGil& operator=(const ReleasedGil&) = delete;

 private:
  PyThreadState* state_;
};

}  // namespace fabric::bind
