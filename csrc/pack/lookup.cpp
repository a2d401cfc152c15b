// Dense int8 -> lookup format and back.
#include <algorithm>
#include <cstdlib>
#include <vector>

#include "pack/row_places.h"
#include "sparsecore/pack.h"

namespace sparsecore {
namespace {

struct Slot {
  uint8_t column;
  int8_t value;
};
constexpr Slot kEmpty{0, 0};

// pmaddubsw adds 255 * first and 255 * second in int16 at worst.
bool is_safe(int first, int second) { return (first < 0) != (second < 0) || std::abs(first) + std::abs(second) <= 128; }

// Orders slots so that neighbours 2 i and 2 i + 1 are safe together, with empty ones where no partner is left.
void pair_safely(std::vector<Slot>& slots) {
  std::sort(slots.begin(), slots.end(), [](Slot a, Slot b) { return a.value < b.value; });
  std::vector<Slot> paired;
  size_t low = 0, high = slots.size();
  while (low < high) {
    const Slot lowest = slots[low], highest = slots[high - 1];
    if (low + 1 == high) {
      paired.insert(paired.end(), {lowest, kEmpty});
      break;
    }
    if (is_safe(lowest.value, highest.value)) {
      paired.insert(paired.end(), {lowest, highest});
      ++low, --high;
    } else if (highest.value < 0) {  // all that is left is negative: the largest of them cannot have a partner
      paired.insert(paired.end(), {lowest, kEmpty});
      ++low;
    } else {
      paired.insert(paired.end(), {highest, kEmpty});
      --high;
    }
  }
  slots.swap(paired);
}

// The slots of one group of a block: for each lane its non-zeros, in the order in which they are stored.
class Group {
 public:
  Group(const int8_t* weight, const LookupView& shape)
      : weight_(weight), shape_(shape), lanes_(static_cast<size_t>(shape.lanes)) {}

  void read(int64_t block, int64_t group) {
    const int64_t segment = group / shape_.groups(), first = group % shape_.groups() * shape_.table;
    const int64_t size = std::min(shape_.table, shape_.segment_cols() - first);
    steps_ = 0;
    for (int64_t lane = 0; lane < shape_.lanes; ++lane) {
      std::vector<Slot>& slots = lanes_[static_cast<size_t>(lane)];
      slots.clear();
      const int64_t row = block * shape_.lanes + lane;
      if (row >= shape_.rows) continue;
      const int8_t* values = weight_ + row * shape_.cols + segment * shape_.segment_cols() + first;
      for (int64_t i = 0; i < size; ++i) {
        if (values[i] != 0) slots.push_back({static_cast<uint8_t>(i), values[i]});
      }
      if (shape_.has_safe_pairs) pair_safely(slots);
      steps_ = std::max(steps_, (static_cast<int64_t>(slots.size()) + 3) / 4);
    }
  }

  int64_t steps() const { return steps_; }
  int64_t entries() const { return (steps_ + kMaxLookupSteps - 1) / kMaxLookupSteps; }
  // First step of an entry, in equal shares.
  int64_t begin_of(int64_t entry) const { return steps_ * entry / entries(); }

  // Columns and values of a step.
  void write(int64_t step, uint8_t* out) const {
    const int64_t quad_bytes = shape_.quad_bytes();
    for (int64_t i = 0; i < quad_bytes; ++i) {
      const std::vector<Slot>& slots = lanes_[static_cast<size_t>(i / 4)];
      const size_t at = static_cast<size_t>(4 * step + i % 4);
      const Slot slot = at < slots.size() ? slots[at] : kEmpty;
      out[i] = slot.column;
      out[quad_bytes + i] = static_cast<uint8_t>(slot.value);
    }
  }

 private:
  const int8_t* weight_;
  const LookupView& shape_;
  std::vector<std::vector<Slot>> lanes_;
  int64_t steps_ = 0;
};

int64_t num_groups(const LookupView& shape) { return shape.segments * shape.groups(); }

}  // namespace

void count_lookup(const int8_t* weight, const LookupView& shape, Range blocks, int32_t* entry_ptr, int32_t* step_ptr) {
  Group group(weight, shape);
  for (int64_t block = blocks.begin; block < blocks.end; ++block) {
    int64_t entries = 0, steps = 0;
    for (int64_t g = 0; g < num_groups(shape); ++g) {
      group.read(block, g);
      entries += group.entries();
      steps += group.steps();
    }
    entry_ptr[block + 1] = static_cast<int32_t>(entries);
    step_ptr[block + 1] = static_cast<int32_t>(steps);
  }
}

void fill_lookup(const int8_t* weight, const LookupView& shape, Range blocks, const LookupArrays& out) {
  struct Entry {
    int64_t group, begin, steps;
  };
  Group group(weight, shape);
  std::vector<Entry> entries;
  for (int64_t block = blocks.begin; block < blocks.end; ++block) {
    entries.clear();
    for (int64_t g = 0; g < num_groups(shape); ++g) {
      group.read(block, g);
      for (int64_t e = 0; e < group.entries(); ++e) {
        entries.push_back({g, group.begin_of(e), group.begin_of(e + 1) - group.begin_of(e)});
      }
    }
    std::stable_sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) { return a.steps < b.steps; });
    int64_t at = out.entry_ptr[block];
    uint8_t* slots = out.slots + int64_t(out.step_ptr[block]) * 2 * shape.quad_bytes();
    for (const Entry& entry : entries) {
      group.read(block, entry.group);
      out.entry_group[at] = static_cast<uint16_t>(entry.group);
      out.entry_steps[at++] = static_cast<uint8_t>(entry.steps);
      for (int64_t step = 0; step < entry.steps; ++step, slots += 2 * shape.quad_bytes()) {
        group.write(entry.begin + step, slots);
      }
    }
  }
}

void unpack_lookup(const LookupView& weight, Range blocks, int8_t* dense) {
  const int64_t quad_bytes = weight.quad_bytes();
  const int64_t first_row = std::min(blocks.begin * weight.lanes, weight.rows);
  const int64_t last_row = std::min(blocks.end * weight.lanes, weight.rows);
  std::fill(dense + first_row * weight.cols, dense + last_row * weight.cols, int8_t{0});
  for (int64_t block = blocks.begin; block < blocks.end; ++block) {
    const uint8_t* slots = weight.slots + int64_t(weight.step_ptr[block]) * 2 * quad_bytes;
    for (int64_t e = weight.entry_ptr[block]; e < weight.entry_ptr[block + 1]; ++e) {
      const int64_t segment = weight.entry_group[e] / weight.groups();
      const int64_t first = weight.entry_group[e] % weight.groups() * weight.table;
      for (int64_t step = 0; step < weight.entry_steps[e]; ++step, slots += 2 * quad_bytes) {
        for (int64_t i = 0; i < quad_bytes; ++i) {
          const int64_t row = block * weight.lanes + i / 4, col = first + slots[i] % weight.table;
          const int8_t value = static_cast<int8_t>(slots[quad_bytes + i]);
          if (value == 0 || row >= weight.rows || col >= weight.segment_cols()) continue;
          dense[row * weight.cols + segment * weight.segment_cols() + col] = value;
        }
      }
    }
  }
}

const char* validate_lookup(const LookupView& weight, Range blocks) {
  if (const char* text = validate_row_places(weight, blocks)) return text;
  for (int64_t block = blocks.begin; block < blocks.end; ++block) {
    const int64_t first = weight.entry_ptr[block], last = weight.entry_ptr[block + 1];
    const int64_t first_step = weight.step_ptr[block], last_step = weight.step_ptr[block + 1];
    if (first < 0 || last < first || last > weight.num_entries) return "entry_ptr is not monotone or out of range";
    if (first_step < 0 || last_step < first_step || last_step > weight.num_steps) {
      return "step_ptr is not monotone or out of range";
    }
    int64_t steps = 0, least = 1;
    for (int64_t e = first; e < last; ++e) {
      if (weight.entry_group[e] >= num_groups(weight)) return "an entry is in no group";
      if (weight.entry_steps[e] < least || weight.entry_steps[e] > kMaxLookupSteps) {
        return "the steps of an entry are out of order or range";
      }
      least = weight.entry_steps[e];
      steps += least;
    }
    if (steps != last_step - first_step) return "step_ptr does not match the entries";
  }
  return nullptr;
}

}  // namespace sparsecore
