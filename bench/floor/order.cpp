#include "order.hpp"

#include <cctype>
#include <stdexcept>

namespace floors {
namespace {

constexpr u64 kAckBytes = 8;

/// Walks over one line.
class Cursor {
 public:
  explicit Cursor(std::string_view text) : text_(text) {}

  void expect(char wanted) {
    if (next() != wanted) fail();
    ++at_;
  }
  bool take(char wanted) {
    if (next() != wanted) return false;
    ++at_;
    return true;
  }
  std::string value() { return next() == '"' ? quoted() : bare(); }
  std::string quoted() {
    expect('"');
    std::string out;
    while (at_ < text_.size() && text_[at_] != '"') {
      if (text_[at_] == '\\') ++at_;  // folders and names: no \u and no \n among them
      if (at_ < text_.size()) out += text_[at_++];
    }
    expect('"');
    return out;
  }

 private:
  char next() {
    while (at_ < text_.size() && std::isspace(static_cast<unsigned char>(text_[at_]))) ++at_;
    return at_ < text_.size() ? text_[at_] : '\0';
  }
  std::string bare() {
    const std::size_t begin = at_;
    while (at_ < text_.size() && (std::isalnum(static_cast<unsigned char>(text_[at_])) ||
                                  std::string_view("+-.").find(text_[at_]) != std::string_view::npos)) ++at_;
    if (at_ == begin) fail();
    return std::string(text_.substr(begin, at_ - begin));
  }
  [[noreturn]] void fail() const { throw std::runtime_error("not a flat JSON object: " + std::string(text_)); }

  std::string_view text_;
  std::size_t at_ = 0;
};

}  // namespace

Order::Order(std::string_view line) {
  Cursor cursor(line);
  cursor.expect('{');
  if (cursor.take('}')) return;
  do {
    std::string name = cursor.quoted();
    cursor.expect(':');
    fields_[name] = cursor.value();
  } while (cursor.take(','));
  cursor.expect('}');
}

std::string Order::text(const std::string& name, const std::string& otherwise) const {
  const auto at = fields_.find(name);
  return at == fields_.end() ? otherwise : at->second;
}

double Order::number(const std::string& name, double otherwise) const {
  const auto at = fields_.find(name);
  return at == fields_.end() || at->second == "null" ? otherwise : std::stod(at->second);
}

u64 Order::count(const std::string& name, u64 otherwise) const {
  return static_cast<u64>(number(name, static_cast<double>(otherwise)));
}

u64 Order::count(const std::string& name) const {
  if (!has(name)) throw std::runtime_error("the order lacks \"" + name + "\"");
  return count(name, 0);
}

bool Order::flag(const std::string& name) const { return text(name) == "true"; }

u64 Order::message_bytes() const {
  const std::string run = text("run");
  const bool is_measured = run == "round_trips" || run == "one_way" || (run == "verify" && !flag("as_array"));
  return is_measured ? count("size") : kAckBytes;
}

bool Order::has_arrays() const {
  const std::string run = text("run");
  return run == "bulk" || run == "loaned" || run == "hand_over" || (run == "verify" && flag("as_array"));
}

// ------------------------------------------------------------------ answers
void Answer::name(const char* name) {
  if (!fields_.empty()) fields_ += ", ";
  fields_ += '"';
  fields_ += name;
  fields_ += "\": ";
}

Answer& Answer::add(const char* label, u64 value) {
  name(label);
  fields_ += std::to_string(value);
  return *this;
}

Answer& Answer::add(const char* label, const std::vector<u64>& values) {
  name(label);
  fields_ += '[';
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (i != 0) fields_ += ", ";
    fields_ += std::to_string(values[i]);
  }
  fields_ += ']';
  return *this;
}

Answer& Answer::add(const char* label, const std::vector<std::string>& values) {
  name(label);
  fields_ += '[';
  for (std::size_t i = 0; i < values.size(); ++i) fields_ += (i != 0 ? ", \"" : "\"") + values[i] + '"';
  fields_ += ']';
  return *this;
}

Answer& Answer::add_text(const char* label, std::string_view value) {
  name(label);
  fields_ += '"';
  for (char c : value) {
    if (c == '"' || c == '\\') fields_ += '\\';
    fields_ += std::iscntrl(static_cast<unsigned char>(c)) ? ' ' : c;
  }
  fields_ += '"';
  return *this;
}

Answer& Answer::add_true(const char* label) {
  name(label);
  fields_ += "true";
  return *this;
}

}  // namespace floors
