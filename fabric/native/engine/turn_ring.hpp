// Members that take turns, each turn as many bytes as the member's weight is worth: weighted deficit round robin.
//
// Engine thread only. A turn is not cut short: what a member takes beyond it is owed, and paid off in the turns that it
// then does not get. It is owed also by one that has nothing more to send: else who comes and goes would get more.
#pragma once

#include <algorithm>
#include <deque>
#include <unordered_map>

#include "core/layout.hpp"

namespace fabric {

inline constexpr std::int64_t kTurnBytes = 8 * 1024;  // of weight 1: short turns also where weights are large
inline constexpr std::int64_t kOwedMax = 16 << 20;     // more is forgiven

/// What a member has: `waiting` transfers below it, the bytes that are left of its turn or owed.
struct Turn {
  std::int64_t left = 0;
  u32 waiting = 0;
};

template <class Key, class Member>  // Member: a Turn, with weight()
class TurnRing {
 public:
  bool is_empty() const { return waiting_ == 0; }

  /// One more transfer waits at this member. @return it
  Member& add(Key key) {
    const auto [found, is_new] = members_.try_emplace(key);
    if (is_new) turns_.push_back(key);
    ++found->second.waiting;
    ++waiting_;
    return found->second;
  }

  /// Whose turn it is; not when `is_empty`.
  Key next() {
    for (;;) {
      const Key key = turns_.front();
      Member& member = members_.find(key)->second;
      if (member.waiting > 0 && member.left > 0) return key;
      if (member.waiting == 0 && member.left >= 0) {
        forget_front();
        continue;
      }
      member.left += kTurnBytes * member.weight();
      if (member.waiting > 0 && member.left > 0) return key;
      pass_on();
    }
  }

  Member& at(Key key) { return members_.find(key)->second; }

  /// It took so many bytes, in its turn or before it.
  void pay(Key key, u64 bytes) {
    Member& member = at(key);
    member.left = std::max(member.left - static_cast<std::int64_t>(bytes), -kOwedMax);
    if (member.left <= 0 && turns_.front() == key) pass_on();
  }

  /// One of its transfers waits no more. Where nobody waits nobody is owed anything.
  void drop(Key key) {
    --at(key).waiting;
    if (--waiting_ == 0) clear();
  }

  template <class Call>
  void each(Call call) {
    for (auto& [key, member] : members_) call(member);
  }

  void clear() {
    turns_.clear();
    members_.clear();
    waiting_ = 0;
  }

 private:
  void pass_on() {
    turns_.push_back(turns_.front());
    turns_.pop_front();
  }
  void forget_front() {
    members_.erase(turns_.front());
    turns_.pop_front();
  }

  std::deque<Key> turns_;              // each member once
  std::unordered_map<Key, Member> members_;
  u64 waiting_ = 0;
};

}  // namespace fabric
