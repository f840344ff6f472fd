#include "core/ledger.hpp"

#include <cstring>

namespace fabric {
namespace {

// Always inside the table of counts, whatever the word.
static_assert((static_cast<int>(Reason::count) & (static_cast<int>(Reason::count) - 1)) == 0);
int end_index(u32 word) { return static_cast<int>(out_end(word)) & 3; }
int reason_index(u32 word) { return static_cast<int>(out_reason(word)) & (static_cast<int>(Reason::count) - 1); }

}  // namespace

void Ledger::begin(u64 sequence, u64 flow, u64 flow_seq, u64 position, u64 payload_bytes) {
  OutEntry& out = entry(sequence);
  out.flow = flow;
  out.flow_seq = flow_seq;
  out.position = static_cast<u32>(position);
  out.payload_bytes = payload_bytes;
  out.sequence.store(sequence, std::memory_order_relaxed);
  out.word.store(out_word(OutState::pending), std::memory_order_release);
}

void Ledger::accept(u64 first, u64 last) {
  for (u64 sequence = first; sequence <= last; ++sequence) {
    entry(sequence).word.store(out_word(OutState::accepted), std::memory_order_release);
  }
  row_->accepted.store(last, std::memory_order_release);
}

bool Ledger::live(u64 sequence) const {
  const OutEntry& out = entry(sequence);
  const OutState state = out_state(out.word.load(std::memory_order_acquire));
  return out.sequence.load(std::memory_order_relaxed) == sequence &&
         (state == OutState::accepted || state == OutState::waiting);
}

bool Ledger::end(u64 sequence, End end, Reason reason) {
  if (!live(sequence)) return false;
  entry(sequence).word.store(out_word(OutState::ended, end, reason), std::memory_order_release);
  return true;
}

void Ledger::wait(u64 sequence) {
  OutEntry& out = entry(sequence);
  // release order: a reader that still sees the flow also sees the message as waiting
  out.word.store(out_word(OutState::waiting), std::memory_order_release);
  out.flow = 0;
  out.flow_seq = 0;
}

void Ledger::revoke(u64 sequence) {
  entry(sequence).word.store(out_word(OutState::empty), std::memory_order_release);
}

void Ledger::aside(Aside kind, u64 messages) {
  auto& count = row_->aside[static_cast<int>(kind)];
  count.store(count.load(std::memory_order_relaxed) + messages, std::memory_order_release);
}

u64 Ledger::asides() const {
  u64 messages = 0;
  for (const auto& count : row_->aside) messages += count.load(std::memory_order_acquire);
  return messages;
}

// Of the two places exactly one is the message's at any time: the old one until it has ended as moved.
u64 Ledger::relocate() {
  const u64 fresh = accepted() + 1;
  OutEntry &from = entry(tail() + 1), &to = entry(fresh);
  const u32 word = from.word.load(std::memory_order_relaxed);
  to.flow = from.flow;
  to.flow_seq = from.flow_seq;
  to.position = from.position;
  to.payload_bytes = from.payload_bytes;
  to.sequence.store(fresh, std::memory_order_relaxed);
  to.word.store(out_word(OutState::moving), std::memory_order_release);
  from.word.store(out_word(OutState::ended, End::none), std::memory_order_release);
  to.word.store(word, std::memory_order_release);
  row_->accepted.store(fresh, std::memory_order_release);
  return fresh;
}

bool Ledger::was_moved(u64 sequence) const {
  const auto state = [this](u64 number) { return entry(number).word.load(std::memory_order_acquire); };
  return state(sequence) == out_word(OutState::moving) && state(tail() + 1) == out_word(OutState::ended, End::none);
}

u32 Ledger::fold(u32 miscount) {
  const u32 now = row_->active.load(std::memory_order_relaxed) & 1;
  const Fold& from = row_->fold[now];
  const u64 accepted = last();
  u64 sequence = from.tail;
  if (sequence >= accepted || out_state(entry(sequence + 1).word.load(std::memory_order_relaxed)) != OutState::ended) {
    return 0;
  }
  Fold& to = row_->fold[1 - now];
  std::memcpy(&to, &from, sizeof to);
  while (sequence < accepted) {
    const u32 word = entry(sequence + 1).word.load(std::memory_order_relaxed);
    if (out_state(word) != OutState::ended) break;
    ++sequence;
    const bool is_message = out_end(word) != End::none;
    to.count[end_index(word)][reason_index(word)] += 1 + (is_message ? miscount : 0);
    if (out_end(word) == End::delivered) to.delivered_bytes += entry(sequence).payload_bytes;
    if (is_message) miscount = 0;
  }
  to.tail = sequence;
  row_->active.store(1 - now, std::memory_order_release);  // tail and counters flip together
  return static_cast<u32>(sequence - from.tail);
}

u64 Ledger::ended_upto() const {
  const u64 until = last();
  u64 sequence = tail();
  while (sequence < until &&
         out_state(entry(sequence + 1).word.load(std::memory_order_acquire)) == OutState::ended) {
    ++sequence;
  }
  return sequence;
}

EndCounts Ledger::counts() const {
  EndCounts out{};
  const Fold& fold = active();
  for (int end = 0; end < 4; ++end) {
    for (int reason = 0; reason < static_cast<int>(Reason::count); ++reason) {
      out[end][reason] = fold.count[end][reason];
    }
  }
  for (int kind = 0; kind < static_cast<int>(Aside::count); ++kind) {
    const auto [end, reason] = aside_end(static_cast<Aside>(kind));
    out[static_cast<int>(end)][static_cast<int>(reason)] += row_->aside[kind].load(std::memory_order_acquire);
  }
  for (u64 sequence = fold.tail + 1; sequence <= last(); ++sequence) {
    const u32 word = entry(sequence).word.load(std::memory_order_acquire);
    if (out_state(word) == OutState::ended) {
      ++out[end_index(word)][reason_index(word)];
    }
  }
  out[static_cast<int>(End::none)][static_cast<int>(Reason::none)] = 0;  // moved entries are no messages
  return out;
}

u64 Ledger::outstanding() const {
  u64 live_entries = 0;
  for (u64 sequence = tail() + 1; sequence <= last(); ++sequence) live_entries += live(sequence);
  return live_entries;
}

}  // namespace fabric
