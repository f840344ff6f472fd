// A seeded mutator around LLVMFuzzerTestOneInput, for compilers without libFuzzer.
//
// usage: fuzz_NAME -max_total_time=SECONDS [-seed=N] CORPUS_DIR… | fuzz_NAME FILE…
// Runs every corpus input once, then mutations of them until the time is over; a FILE is run once, alone. The input
// that ends the process is in ./crash-NAME.bin: move it into the corpus when the fault is mended.
// One thread; it owns nothing beyond its own buffers. The same seed and corpus give the same inputs.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace {

using Input = std::vector<std::uint8_t>;
constexpr std::size_t kInputBytesMax = 16 * 1024;

/// Values that break range checks: around powers of two and the ends of each width.
constexpr std::uint64_t kInteresting[] = {
    0, 1, 2, 7, 8, 63, 64, 127, 128, 255, 256, 4095, 4096, 4097, 8191, 8192, 65535, 65536,
    0x7fffffffu, 0x80000000u, 0xffffffffu, 0x7fffffffffffffffu, 0x8000000000000000u, 0xffffffffffffffffu};

Input read_file(const std::filesystem::path& path) {
  std::ifstream stream(path, std::ios::binary);
  return Input(std::istreambuf_iterator<char>(stream), {});
}

std::vector<Input> read_corpus(const std::vector<std::string>& folders) {
  std::vector<std::filesystem::path> paths;
  for (const auto& folder : folders) {
    for (const auto& entry : std::filesystem::directory_iterator(folder)) {
      if (entry.is_regular_file()) paths.push_back(entry.path());
    }
  }
  std::sort(paths.begin(), paths.end());  // directory order is not the same everywhere
  std::vector<Input> corpus;
  for (const auto& path : paths) corpus.push_back(read_file(path));
  return corpus;
}

/// Keeps the running input in a mapped file (size, then bytes): no call per run, and it outlives this process.
class CrashFile {
 public:
  explicit CrashFile(const std::string& name) : path_("crash-" + name + ".bin") {
    fd_ = ::open(path_.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd_ < 0 || ::ftruncate(fd_, sizeof(std::uint32_t) + kInputBytesMax) != 0) std::abort();
    void* at = ::mmap(nullptr, sizeof(std::uint32_t) + kInputBytesMax, PROT_READ | PROT_WRITE, MAP_SHARED, fd_, 0);
    if (at == MAP_FAILED) std::abort();
    bytes_ = static_cast<std::uint8_t*>(at);
  }
  CrashFile(const CrashFile&) = delete;
  CrashFile& operator=(const CrashFile&) = delete;
  void note(const Input& input) {
    const auto size = static_cast<std::uint32_t>(input.size());
    std::memcpy(bytes_, &size, sizeof size);
    if (size != 0) std::memcpy(bytes_ + sizeof size, input.data(), size);
  }
  void discard() { ::unlink(path_.c_str()); ::close(fd_); }

  /// The input inside a file that an earlier run left; other files are inputs as they are.
  static Input unwrap(const std::filesystem::path& path) {
    Input bytes = read_file(path);
    std::uint32_t size = 0;
    if (bytes.size() == sizeof size + kInputBytesMax) {
      std::memcpy(&size, bytes.data(), sizeof size);
      if (size <= kInputBytesMax) return Input(bytes.begin() + sizeof size, bytes.begin() + sizeof size + size);
    }
    return bytes;
  }

 private:
  std::string path_;
  int fd_ = -1;
  std::uint8_t* bytes_ = nullptr;
};

class Mutator {
 public:
  explicit Mutator(std::uint64_t seed) : random_(seed) {}

  Input mutate(const std::vector<Input>& corpus) {
    Input input = corpus[below(corpus.size())];
    for (std::size_t steps = 1 + below(6); steps > 0; --steps) step(input, corpus);
    if (input.size() > kInputBytesMax) input.resize(kInputBytesMax);
    return input;
  }

 private:
  std::size_t below(std::size_t limit) { return limit == 0 ? 0 : random_() % limit; }

  void step(Input& input, const std::vector<Input>& corpus) {
    const std::size_t at = below(input.size());
    switch (below(8)) {
      case 0: if (!input.empty()) input[at] ^= static_cast<std::uint8_t>(1u << below(8)); break;
      case 1: if (!input.empty()) input[at] = static_cast<std::uint8_t>(random_()); break;
      case 2: overwrite(input, at, kInteresting[below(std::size(kInteresting))]); break;
      case 3: overwrite(input, at & ~std::size_t{3}, below(256)); break;
      case 4: input.resize(at); break;
      case 5: input.insert(input.begin() + static_cast<std::ptrdiff_t>(at), 1 + below(64), static_cast<std::uint8_t>(random_())); break;
      case 6: {  // splice the tail of another input
        const Input& other = corpus[below(corpus.size())];
        if (other.empty()) break;
        const auto from = static_cast<std::ptrdiff_t>(below(other.size()));
        input.resize(at);
        input.insert(input.end(), other.begin() + from, other.end());
        break;
      }
      default: {  // repeat a piece of itself
        const std::size_t length = std::min<std::size_t>(1 + below(128), input.size() - at);
        const Input piece(input.begin() + static_cast<std::ptrdiff_t>(at), input.begin() + static_cast<std::ptrdiff_t>(at + length));
        input.insert(input.end(), piece.begin(), piece.end());
      }
    }
  }

  void overwrite(Input& input, std::size_t at, std::uint64_t value) {
    const std::size_t width = std::size_t{1} << below(4);
    for (std::size_t i = 0; i < width && at + i < input.size(); ++i) {
      input[at + i] = static_cast<std::uint8_t>(value >> (8 * i));
    }
  }

  std::mt19937_64 random_;
};

}  // namespace

int main(int argc, char** argv) {
  double seconds = 10;
  std::uint64_t seed = 1;
  std::vector<std::string> folders, files;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    if (word.rfind("-max_total_time=", 0) == 0) seconds = std::atof(word.c_str() + 16);
    else if (word.rfind("-seed=", 0) == 0) seed = std::strtoull(word.c_str() + 6, nullptr, 10);
    else if (std::filesystem::is_regular_file(word)) files.push_back(word);
    else folders.push_back(word);
  }
  for (const auto& file : files) {
    const Input input = CrashFile::unwrap(file);
    LLVMFuzzerTestOneInput(input.data(), input.size());
  }
  if (!files.empty()) return 0;
  std::vector<Input> corpus = read_corpus(folders);
  CrashFile crash(std::filesystem::path(argv[0]).filename().string());
  for (const Input& input : corpus) {
    crash.note(input);
    LLVMFuzzerTestOneInput(input.data(), input.size());
  }
  const std::size_t kept = corpus.size();
  corpus.push_back(Input(64, 0));  // something to grow from when there is no corpus
  Mutator mutator(seed);
  const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
  std::uint64_t runs = 0;
  while (std::chrono::steady_clock::now() < end) {
    for (int burst = 0; burst < 256; ++burst, ++runs) {
      const Input input = mutator.mutate(corpus);
      crash.note(input);
      LLVMFuzzerTestOneInput(input.data(), input.size());
    }
  }
  crash.discard();
  std::printf("%s: %zu corpus inputs and %llu mutations, seed %llu, no failure\n", argv[0], kept,
              static_cast<unsigned long long>(runs), static_cast<unsigned long long>(seed));
  return 0;
}
