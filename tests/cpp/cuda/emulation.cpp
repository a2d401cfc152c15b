#include "cuda/emulation.h"

#include <gtest/gtest.h>
#include <ucontext.h>

#include <algorithm>
#include <bit>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "guarded.h"
#include "numbers.h"
#include "random.h"

namespace sparsecore::cuda {
namespace {

constexpr int kLanes = 32;
constexpr size_t kStackBytes = 128 * 1024;
constexpr uint8_t kPoison = 0xcb;

struct Copy {
  void* to;
  const void* from;
  uint32_t bytes;
};

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  bool is_done = false;
  int64_t exchanges = 0, block_syncs = 0;
  std::vector<Copy> open;                 // since the last commit
  std::vector<std::vector<Copy>> groups;  // committed, oldest first
};

// The lanes' values of an exchange: of this one and of the one before, which slow lanes still read.
struct Warp {
  int64_t arrived = 0;
  std::string kind;
  std::vector<uint8_t> values[2];
};

struct Barrier {
  bool is_armed = false;  // the bytes of this phase are announced
  uint32_t phase = 0, missing = 0;
  std::vector<Copy> copies;
};

struct Block {
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  std::map<uint64_t*, Barrier> barriers;
  int64_t synced = 0;
  uint8_t* shared = nullptr;
  int64_t x = 0, y = 0;
  Grid grid;
  int current = 0;
  ucontext_t scheduler;
  const std::function<void()>* kernel = nullptr;
};

Block* block = nullptr;

void copy(const Copy& copy) { std::memcpy(copy.to, copy.from, copy.bytes); }

void yield() { swapcontext(&block->fibers[size_t(block->current)].context, &block->scheduler); }

template <class Condition>
void wait_until(Condition condition) {
  // A fiber that waits for what will never come is a deadlock of the kernel.
  for (int turns = 0; !condition(); ++turns) {
    if (turns > 100'000) {
      ADD_FAILURE() << "deadlock in thread " << thread_index();
      std::abort();
    }
    yield();
  }
}

Fiber& fiber() { return block->fibers[size_t(block->current)]; }

void run_fiber() {
  (*block->kernel)();
  EXPECT_TRUE(fiber().open.empty() && fiber().groups.empty()) << "a thread ends before its copies have arrived";
  fiber().is_done = true;
  yield();
}

void run_block(Block& state, test::Random& random) {
  block = &state;
  for (Fiber& fiber : state.fibers) {
    getcontext(&fiber.context);
    fiber.stack = std::make_unique_for_overwrite<char[]>(kStackBytes);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStackBytes;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, run_fiber, 0);
  }
  for (bool is_running = true; is_running;) {
    is_running = false;
    const auto first = static_cast<size_t>(random.integer(0, int64_t(state.fibers.size()) - 1));
    const bool forward = random.chance(0.5);
    for (size_t i = 0; i < state.fibers.size(); ++i) {
      const size_t turn = (first + (forward ? i : state.fibers.size() - i)) % state.fibers.size();
      if (state.fibers[turn].is_done) continue;
      is_running = true;
      state.current = static_cast<int>(turn);
      swapcontext(&state.scheduler, &state.fibers[turn].context);
    }
  }
  for (const auto& [address, barrier] : state.barriers) {
    EXPECT_TRUE(barrier.copies.empty()) << "a block ends before its copies have arrived";
  }
  block = nullptr;
}

}  // namespace

int thread_index() { return block->current; }
int block_threads() { return static_cast<int>(block->fibers.size()); }
int64_t block_x() { return block->x; }
int64_t block_y() { return block->y; }
int64_t grid_x() { return block->grid.x; }
int64_t grid_y() { return block->grid.y; }
uint8_t* shared_memory() { return block->shared; }

void sync_block() {
  ++block->synced;
  const int64_t all = ++fiber().block_syncs * block_threads();
  wait_until([all] { return block->synced >= all; });
}

const void* exchange(const char* kind, const void* mine, int bytes) {
  Warp& warp = block->warps[size_t(thread_index() / kLanes)];
  const int64_t number = fiber().exchanges++;
  std::vector<uint8_t>& values = warp.values[number % 2];
  if (warp.arrived == number * kLanes) {
    warp.kind = kind;
    values.assign(size_t(bytes) * kLanes, kPoison);
  }
  EXPECT_EQ(warp.kind, kind) << "lanes of a warp exchange different things";
  std::memcpy(values.data() + thread_index() % kLanes * bytes, mine, size_t(bytes));
  ++warp.arrived;
  wait_until([&] { return warp.arrived >= (number + 1) * kLanes; });
  return values.data();
}

void copy_async(void* to, const void* from) {
  check_alignment(to, 16);
  check_alignment(from, 16);
  std::memset(to, kPoison, 16);  // from now on the bytes may arrive
  fiber().open.push_back({to, from, 16});
}

void commit_copies() { fiber().groups.push_back(std::exchange(fiber().open, {})); }

void wait_for_copies_but(int count) {
  auto& groups = fiber().groups;
  while (static_cast<int>(groups.size()) > count) {
    std::for_each(groups.front().begin(), groups.front().end(), copy);
    groups.erase(groups.begin());
  }
}

void init_barrier(uint64_t* barrier) { block->barriers[barrier]; }

void expect_bytes(uint64_t* barrier, uint32_t bytes) {
  Barrier& state = block->barriers.at(barrier);
  EXPECT_FALSE(state.is_armed) << "a barrier takes one arrival per phase";
  state.is_armed = true;
  state.missing += bytes;
}

void copy_bulk(void* to, const void* from, uint32_t bytes, uint64_t* barrier) {
  check_alignment(to, 16);
  check_alignment(from, 16);
  EXPECT_EQ(bytes % 16, 0u);
  std::memset(to, kPoison, bytes);
  Barrier& state = block->barriers.at(barrier);
  state.missing -= bytes;
  state.copies.push_back({to, from, bytes});
}

void wait_barrier(uint64_t* barrier, uint32_t parity) {
  Barrier& state = block->barriers.at(barrier);
  wait_until([&] {
    if (state.phase % 2 == parity && state.is_armed && state.missing == 0) {
      std::for_each(state.copies.begin(), state.copies.end(), copy);
      state.copies.clear();
      state.is_armed = false;
      ++state.phase;
    }
    return state.phase % 2 != parity;
  });
}

void check_alignment(const void* pointer, uintptr_t bytes) {
  EXPECT_EQ(reinterpret_cast<uintptr_t>(pointer) % bytes, 0u) << "misaligned for a GPU";
}

namespace {

void run_block_at(Grid grid, Grid at, int threads, int64_t shared_bytes, test::Random& random,
                  const std::function<void()>& kernel) {
  ASSERT_EQ(threads % kLanes, 0);
  test::Buffer<uint8_t> shared(shared_bytes, test::Guard::kAfter, 128);
  std::memset(shared.data(), kPoison, size_t(shared_bytes));
  Block state;
  state.fibers.resize(size_t(threads));
  state.warps.resize(size_t(threads / kLanes));
  state.shared = shared.data();
  state.x = at.x;
  state.y = at.y;
  state.grid = grid;
  state.kernel = &kernel;
  run_block(state, random);
}

}  // namespace

void run_one_block(Grid grid, Grid at, int threads, int64_t shared_bytes, uint32_t seed,
                   const std::function<void()>& kernel) {
  test::Random random(seed);
  run_block_at(grid, at, threads, shared_bytes, random, kernel);
}

void run_grid(Grid grid, int threads, int64_t shared_bytes, uint32_t seed, const std::function<void()>& kernel) {
  test::Random random(seed);
  std::vector<int64_t> order(static_cast<size_t>(grid.x * grid.y));
  for (size_t i = 0; i < order.size(); ++i) order[i] = int64_t(i);
  for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[size_t(random.integer(0, int64_t(i) - 1))]);
  for (const int64_t number : order) {
    run_block_at(grid, {number % grid.x, number / grid.x}, threads, shared_bytes, random, kernel);
  }
}

float half_to_float(uint16_t x) {
  static const std::vector<float> all = [] {
    std::vector<float> result;
    for (uint32_t bits = 0; bits < 0x10000; ++bits) result.push_back(test::decode(Dtype::kFloat16, uint16_t(bits)));
    return result;
  }();
  return all[x];
}
uint16_t float_to_half(float x) { return test::encode(Dtype::kFloat16, x); }
uint16_t float_to_brain(float x) { return test::encode(Dtype::kBFloat16, x); }

namespace {

// Registers of one lane, as the PTX manual numbers them.
struct Registers {
  uint32_t a[4], b[2];
  uint16_t a_at(int i) const { return uint16_t(a[i / 2] >> i % 2 * 16); }
  uint16_t b_at(int i) const { return uint16_t(b[i / 2] >> i % 2 * 16); }
  int8_t a_byte(int i) const { return int8_t(a[i / 4] >> i % 4 * 8); }
  int8_t b_byte(int i) const { return int8_t(b[i / 4] >> i % 4 * 8); }
};

// PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type".
void multiply_add(float (&acc)[4], const Registers& mine, float (*widen)(uint16_t)) {
  const auto* lanes = static_cast<const Registers*>(exchange("mma", &mine, sizeof(mine)));
  float a[16][16], b[16][8];
  for (int lane = 0; lane < kLanes; ++lane) {
    const int group = lane >> 2, in_group = lane % 4;
    for (int i = 0; i < 8; ++i) {
      const int row = i < 2 || (4 <= i && i < 6) ? group : group + 8;
      const int col = in_group * 2 + (i & 1) + (i < 4 ? 0 : 8);
      a[row][col] = widen(lanes[lane].a_at(i));
    }
    for (int i = 0; i < 4; ++i) b[in_group * 2 + (i & 1) + (i < 2 ? 0 : 8)][group] = widen(lanes[lane].b_at(i));
  }
  const int lane = thread_index() % kLanes;
  for (int i = 0; i < 4; ++i) {
    const int row = (lane >> 2) + (i < 2 ? 0 : 8), col = lane % 4 * 2 + (i & 1);
    for (int k = 0; k < 16; ++k) acc[i] = std::fma(a[row][k], b[k][col], acc[i]);
  }
}

}  // namespace

// PTX ISA, "Matrix Fragments for mma.m16n8k32", type .s8.
void multiply_add_int8(int32_t (&acc)[4], const uint32_t (&registers)[4], uint32_t b0, uint32_t b1) {
  const Registers mine{{registers[0], registers[1], registers[2], registers[3]}, {b0, b1}};
  const auto* lanes = static_cast<const Registers*>(exchange("mma int8", &mine, sizeof(mine)));
  int32_t a[16][32], b[32][8];
  for (int lane = 0; lane < kLanes; ++lane) {
    const int group = lane >> 2, in_group = lane % 4;
    for (int i = 0; i < 16; ++i) {
      const int row = i < 4 || (8 <= i && i < 12) ? group : group + 8;
      const int col = in_group * 4 + (i & 3) + (i < 8 ? 0 : 16);
      a[row][col] = lanes[lane].a_byte(i);
    }
    for (int i = 0; i < 8; ++i) b[in_group * 4 + (i & 3) + (i < 4 ? 0 : 16)][group] = lanes[lane].b_byte(i);
  }
  const int lane = thread_index() % kLanes;
  for (int i = 0; i < 4; ++i) {
    const int row = (lane >> 2) + (i < 2 ? 0 : 8), col = lane % 4 * 2 + (i & 1);
    for (int k = 0; k < 32; ++k) acc[i] += a[row][k] * b[k][col];
  }
}

void multiply_add_half(float (&acc)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  multiply_add(acc, {{a[0], a[1], a[2], a[3]}, {b0, b1}}, half_to_float);
}
void multiply_add_brain(float (&acc)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  multiply_add(acc, {{a[0], a[1], a[2], a[3]}, {b0, b1}}, [](uint16_t x) { return bits_to_float(uint32_t(x) << 16); });
}

}  // namespace sparsecore::cuda
