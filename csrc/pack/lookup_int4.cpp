// Dense int8 of 4 bits -> lookup format with group scales, and back.
#include <algorithm>
#include <vector>

#include "pack/row_places.h"
#include "sparsecore/pack.h"

namespace sparsecore {
namespace {

constexpr int64_t kReach = 16;  // columns that a slot can be away from the one before

uint8_t slot_of(int64_t place, int value) { return static_cast<uint8_t>(place | value << 4); }
int8_t value_of(uint8_t slot) { return static_cast<int8_t>(static_cast<int8_t>(slot) >> 4); }

// The slots of one table of a block: those of each lane, in the order in which they are stored.
class Table {
 public:
  Table(const int8_t* weight, const LookupInt4View& shape)
      : weight_(weight), shape_(shape), lanes_(static_cast<size_t>(shape.lanes)) {}

  void read(int64_t block, int64_t table) {
    const int64_t first = table * shape_.table, size = std::min(shape_.table, shape_.cols - first);
    size_t most = 0;
    for (int64_t lane = 0; lane < shape_.lanes; ++lane) {
      std::vector<uint8_t>& slots = lanes_[static_cast<size_t>(lane)];
      slots.clear();
      const int64_t row = block * shape_.lanes + lane;
      if (row < shape_.rows) read_row(weight_ + row * shape_.cols + first, size, slots);
      most = std::max(most, slots.size());
    }
    steps_ = static_cast<int64_t>(most + 3) / 4;
  }

  int64_t steps() const { return steps_; }

  void write(uint8_t* out) const {
    for (int64_t step = 0; step < steps_; ++step) {
      for (const std::vector<uint8_t>& slots : lanes_) {
        for (size_t at = static_cast<size_t>(4 * step); at < static_cast<size_t>(4 * step + 4); ++at) {
          *out++ = at < slots.size() ? slots[at] : uint8_t(0);
        }
      }
    }
  }

 private:
  void read_row(const int8_t* values, int64_t size, std::vector<uint8_t>& slots) const {
    int64_t before = -1;
    for (int64_t i = 0; i < size; ++i) {
      if (values[i] == 0) continue;
      if (shape_.has_distances()) {
        for (; i - before > kReach; before += kReach) slots.push_back(slot_of(kReach - 1, 0));
        slots.push_back(slot_of(i - before - 1, values[i]));
        before = i;
      } else {
        slots.push_back(slot_of(i, values[i]));
      }
    }
  }

  const int8_t* weight_;
  const LookupInt4View& shape_;
  std::vector<std::vector<uint8_t>> lanes_;
  int64_t steps_ = 0;
};

// The tables of a group.
Range tables_of(const LookupInt4View& shape, int64_t group) {
  const int64_t per_group = shape.group_cols / shape.table;
  return {group * per_group, std::min((group + 1) * per_group, shape.tables())};
}

// Slots of a row in one table are at most its columns.
int64_t most_steps(const LookupInt4View& weight) { return (weight.table + 3) / 4; }

}  // namespace

void count_lookup_int4(const int8_t* weight, const LookupInt4View& shape, Range blocks, int32_t* entry_ptr,
                       int32_t* step_ptr) {
  Table table(weight, shape);
  for (int64_t block = blocks.begin; block < blocks.end; ++block) {
    int64_t steps = 0;
    for (int64_t g = 0; g < shape.groups(); ++g) {
      int32_t entries = 0;
      const Range tables = tables_of(shape, g);
      for (int64_t t = tables.begin; t < tables.end; ++t) {
        table.read(block, t);
        entries += table.steps() > 0;
        steps += table.steps();
      }
      entry_ptr[block * shape.groups() + g + 1] = entries;
    }
    step_ptr[block + 1] = static_cast<int32_t>(steps);
  }
}

void fill_lookup_int4(const int8_t* weight, const LookupInt4View& shape, Range blocks, const LookupInt4Arrays& out) {
  std::vector<Table> tables(static_cast<size_t>(shape.group_cols / shape.table), Table(weight, shape));
  std::vector<size_t> order;
  for (int64_t block = blocks.begin; block < blocks.end; ++block) {
    uint8_t* slots = out.slots + int64_t(out.step_ptr[block]) * shape.quad_bytes();
    for (int64_t g = 0; g < shape.groups(); ++g) {
      const Range range = tables_of(shape, g);
      order.clear();
      for (int64_t t = range.begin; t < range.end; ++t) {
        const size_t in_group = static_cast<size_t>(t - range.begin);
        tables[in_group].read(block, t);
        if (tables[in_group].steps() > 0) order.push_back(in_group);
      }
      std::stable_sort(order.begin(), order.end(),
                       [&](size_t a, size_t b) { return tables[a].steps() < tables[b].steps(); });
      int64_t at = out.entry_ptr[block * shape.groups() + g];
      for (const size_t in_group : order) {
        const Table& table = tables[in_group];
        out.entry_table[at] = static_cast<uint8_t>(in_group);
        out.entry_steps[at++] = static_cast<uint8_t>(table.steps());
        table.write(slots);
        slots += table.steps() * shape.quad_bytes();
      }
    }
  }
}

void unpack_lookup_int4(const LookupInt4View& weight, Range blocks, int8_t* dense) {
  const int64_t first_row = std::min(blocks.begin * weight.lanes, weight.rows);
  const int64_t last_row = std::min(blocks.end * weight.lanes, weight.rows);
  std::fill(dense + first_row * weight.cols, dense + last_row * weight.cols, int8_t{0});
  for (int64_t block = blocks.begin; block < blocks.end; ++block) {
    const uint8_t* slots = weight.slots + int64_t(weight.step_ptr[block]) * weight.quad_bytes();
    for (int64_t g = 0; g < weight.groups(); ++g) {
      const int64_t at = block * weight.groups() + g;
      for (int64_t e = weight.entry_ptr[at]; e < weight.entry_ptr[at + 1]; ++e) {
        const int64_t first = g * weight.group_cols + weight.entry_table[e] * weight.table;
        for (int64_t lane = 0; lane < weight.lanes; ++lane) {
          const int64_t row = block * weight.lanes + lane;
          int64_t before = -1;
          for (int64_t i = 0; i < 4 * weight.entry_steps[e]; ++i) {
            const uint8_t slot = slots[i / 4 * weight.quad_bytes() + 4 * lane + i % 4];
            const int64_t place = slot & 0xf;
            const int64_t in_table = weight.has_distances() ? (before + 1 + place) % weight.table : place;
            before = in_table;
            const int64_t col = first + in_table;
            const int8_t value = value_of(slot);
            if (value == 0 || row >= weight.rows || col >= weight.cols) continue;
            dense[row * weight.cols + col] = value;
          }
        }
        slots += weight.entry_steps[e] * weight.quad_bytes();
      }
    }
  }
}

const char* validate_lookup_int4(const LookupInt4View& weight, Range blocks) {
  if (const char* text = validate_row_places(weight, blocks)) return text;
  for (int64_t block = blocks.begin; block < blocks.end; ++block) {
    const int64_t first_step = weight.step_ptr[block], last_step = weight.step_ptr[block + 1];
    if (first_step < 0 || last_step < first_step || last_step > weight.num_steps) {
      return "step_ptr is not monotone or out of range";
    }
    int64_t steps = 0;
    for (int64_t g = 0; g < weight.groups(); ++g) {
      const int64_t at = block * weight.groups() + g;
      const int64_t first = weight.entry_ptr[at], last = weight.entry_ptr[at + 1];
      if (first < 0 || last < first || last > weight.num_entries) return "entry_ptr is not monotone or out of range";
      const int64_t tables = tables_of(weight, g).size();
      for (int64_t e = first; e < last; ++e) {
        if (weight.entry_table[e] >= tables) return "an entry is in no table of its group";
        if (weight.entry_steps[e] < 1 || weight.entry_steps[e] > most_steps(weight)) {
          return "the steps of an entry are out of range";
        }
        steps += weight.entry_steps[e];
      }
    }
    if (steps != last_step - first_step) return "step_ptr does not match the entries";
  }
  return nullptr;
}

}  // namespace sparsecore
