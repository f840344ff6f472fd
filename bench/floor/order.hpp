// Orders and answers: flat JSON objects, one a line. Numbers, texts, booleans and null; nothing nested.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace floors {

using u8 = std::uint8_t;
using u32 = std::uint32_t;
using u64 = std::uint64_t;

enum class Role { near, far };

class Order {
 public:
  /// Throws std::runtime_error where `line` is not a flat object.
  explicit Order(std::string_view line);
  bool has(const std::string& name) const { return fields_.count(name) != 0; }
  std::string text(const std::string& name, const std::string& otherwise = "") const;
  double number(const std::string& name, double otherwise) const;
  u64 count(const std::string& name, u64 otherwise) const;
  u64 count(const std::string& name) const;  ///< throws where it is missing
  bool flag(const std::string& name) const;

  /// Length of every small message of this order: those that are measured, or confirmations.
  u64 message_bytes() const;
  bool has_arrays() const;  ///< arrays go over, not only small messages

 private:
  std::map<std::string, std::string> fields_;
};

class Answer {
 public:
  Answer& add(const char* name, u64 value);
  Answer& add(const char* name, const std::vector<u64>& values);
  Answer& add(const char* name, const std::vector<std::string>& values);
  Answer& add_text(const char* name, std::string_view value);
  Answer& add_true(const char* name);
  std::string line() const { return "{" + fields_ + "}\n"; }

 private:
  void name(const char* name);
  std::string fields_;
};

}  // namespace floors
