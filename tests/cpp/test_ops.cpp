// Tests of the C++ ops without Python: small cases computed by hand, sizes that end in the middle of a word
// or a vector, empty tensors, and bad arguments. Built with sanitizers, they find out-of-bounds reads.
#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>
#include <cstdio>
#include <functional>
#include <limits>

#include "dispatched.h"
#include "mask_sums.h"
#include "ops.h"

namespace {

int failures = 0;

#define EXPECT(condition)                                                        \
    do {                                                                         \
        if (!(condition)) {                                                      \
            std::printf("%s:%d: expected %s\n", __FILE__, __LINE__, #condition); \
            ++failures;                                                          \
        }                                                                        \
    } while (false)

template <typename Error>
bool throws(const std::function<void()>& call, const std::string& word) {
    try {
        call();
    } catch (const Error& error) {
        return std::string(error.what_without_backtrace()).find(word) != std::string::npos;
    } catch (const std::exception& error) {
        std::printf("another error: %s\n", error.what());
    }
    return false;
}

// Where terms of size 1 cancel, an fp32 rounding error (2^-24) may remain, depending on fused operations.
bool close(const at::Tensor& a, const at::Tensor& b) {
    return a.sizes() == b.sizes() && at::allclose(a, b, /*rtol=*/1e-5, /*atol=*/1.2e-7);
}

const float kNaN = std::numeric_limits<float>::quiet_NaN();
const float kInf = std::numeric_limits<float>::infinity();

// Four masks of at most 32 cells, one word each.
at::Tensor four_masks() { return at::tensor({0b1111, 0b0111, 0b110000, 0b1}, at::kInt).view({1, 4, 1}); }

void test_mask_nms() {
    const at::Tensor score = at::tensor({0.5f, 0.9f, 0.9f, 1.0f}).view({1, 4});
    // The last is too small; 1 and 2 have equal scores; 0 overlaps 1 by 3/4.
    EXPECT(at::equal(sp_fast::mask_nms(four_masks(), score, 0.5, 2, 4),
                     at::tensor({1, 2, -1, -1}, at::kLong).view({1, 4})));
    EXPECT(at::equal(sp_fast::mask_nms(four_masks(), score, 0.75, 2, 4),
                     at::tensor({1, 2, 0, -1}, at::kLong).view({1, 4})));
    EXPECT(at::equal(sp_fast::mask_nms(four_masks(), score, 0.75, 2, 1),
                     at::tensor({1}, at::kLong).view({1, 1})));
    const at::Tensor odd = at::tensor({kNaN, -kInf, kInf, kNaN}).view({1, 4});
    EXPECT(at::equal(sp_fast::mask_nms(four_masks(), odd, 0.5, 0, 3),
                     at::tensor({2, 1, -1}, at::kLong).view({1, 3})));
    EXPECT(at::equal(sp_fast::mask_nms(at::zeros({2, 0, 3}, at::kInt), at::zeros({2, 0}), 0.5, 2, 2),
                     at::full({2, 2}, -1, at::kLong)));
    EXPECT(throws<c10::TypeError>(
        [] { sp_fast::mask_nms(at::zeros({1, 1, 1}), at::zeros({1, 1}), 0.5, 2, 2); }, "words"));
    EXPECT(throws<c10::ValueError>([] { sp_fast::mask_nms(four_masks(), at::zeros({1, 3}), 0.5, 2, 2); },
                                   "score"));
}

void test_packed_masks() {
    // 3 x 13 cells: the second word ends after 7 bits.
    at::Tensor masks = at::zeros({2, 3, 13}, at::kBool);
    masks[0].narrow(0, 1, 2).narrow(1, 4, 9).fill_(true);
    const at::Tensor words = sp_fast::pack_masks(masks);
    EXPECT(
        at::equal(words, at::tensor({static_cast<int32_t>(0xc3fe0000), 0x7f, 0, 0}, at::kInt).view({2, 2})));
    EXPECT(at::equal(sp_fast::unpack_masks(words, 3, 13), masks));
    EXPECT(at::equal(sp_fast::mask_areas(words), at::tensor({18, 0}, at::kInt)));
    EXPECT(at::equal(sp_fast::mask_boxes(words, 3, 13),
                     at::tensor({4, 1, 13, 3, 0, 0, 0, 0}, at::kInt).view({2, 4})));
    EXPECT(sp_fast::pack_masks(at::zeros({0, 3, 13}, at::kBool)).sizes() == at::IntArrayRef({0, 2}));
    EXPECT(throws<c10::ValueError>([&] { sp_fast::unpack_masks(words, 3, 33); }, "words"));
    EXPECT(throws<c10::TypeError>([] { sp_fast::pack_masks(at::zeros({3, 13})); }, "masks"));
}

void test_take_proposals() {
    const at::Tensor score = at::tensor({0.5f, 0.9f, 0.9f, 1.0f}).view({1, 4});
    const at::Tensor seeds = at::arange(12, at::kFloat).view({1, 4, 3});
    const at::Tensor chosen = at::tensor({3, -1, 4, 0}, at::kLong).view({1, 4});
    const auto [words, of_chosen, vectors, count] =
        sp_fast::take_proposals(four_masks(), score, seeds, chosen);
    EXPECT(at::equal(words, at::tensor({0b1, 0, 0, 0b1111}, at::kInt).view({1, 4, 1})));
    EXPECT(at::equal(of_chosen, at::tensor({1.f, 0.f, 0.f, 0.5f}).view({1, 4})));
    EXPECT(at::equal(vectors[0][0], seeds[0][3]) && !vectors[0][2].any().item<bool>());
    EXPECT(count.item<int64_t>() == 2);
    EXPECT(throws<c10::ValueError>(
        [&] { sp_fast::take_proposals(four_masks(), score, seeds, chosen.view({2, 2})); }, "chosen"));
}

void test_runs() {
    // Two columns of three pixels: the first inside, the second outside; then all outside.
    const at::Tensor saliency = at::tensor({1.f, 0.f, 0.f, 0.f}).view({2, 1, 2});
    const auto [lengths, number] = sp_fast::mask_runs(saliency, at::full({2}, 0.5f), 3, 2);
    EXPECT(at::equal(lengths, at::tensor({0, 3, 3, 6}, at::kInt)));
    EXPECT(at::equal(number, at::tensor({3, 1}, at::kLong)));
    EXPECT(throws<c10::ValueError>(
        [&] { sp_fast::mask_runs(saliency, at::full({2}, 0.5f), 1 << 16, 1 << 15); }, "height"));

    const auto [text, characters] = sp_fast::compress_runs(lengths, number);
    EXPECT(at::equal(text, at::tensor({'0', '3', '3', '6'}, at::kByte)));
    EXPECT(at::equal(characters, number));
    EXPECT(throws<c10::ValueError>([&] { sp_fast::compress_runs(lengths, number + 1); }, "number"));

    // Row 2, then no row, then row 0; both columns, the second first.
    const at::Tensor ends = characters.cumsum(0), rows = at::tensor({2, -1, 0}, at::kLong);
    const at::Tensor words = sp_fast::sample_runs(text, ends, 3, 2, rows, at::tensor({1, 0}, at::kLong));
    EXPECT(at::equal(words, at::tensor({0b101000, 0}, at::kInt).view({2, 1})));
    EXPECT(throws<c10::ValueError>([&] { sp_fast::sample_runs(text, ends, 3, 3, rows, rows); }, "damaged"));
}

void test_mask_sums() {
    // Constant maps: upsampled, each cell has the same value. sigmoid(0) is 1/2.
    const at::Tensor logits = at::zeros({1, 2, 1, 3});
    at::Tensor masks = at::full({1, 2, 2, 6}, 4, at::kByte);  // quarters
    masks[0][1].narrow(1, 2, 4).fill_(0);
    const auto [overlap, area, squares, target_area, target_squares] = sp_fast::mask_overlaps(logits, masks);
    EXPECT(close(overlap, at::tensor({6.f, 2.f, 6.f, 2.f}).view({1, 2, 2})));
    EXPECT(close(area, at::full({1, 2}, 6.f)) && close(squares, at::full({1, 2}, 3.f)));
    EXPECT(close(target_area, at::tensor({12.f, 4.f}).view({1, 2})));
    EXPECT(close(target_squares, target_area));

    const at::Tensor row = at::tensor({1, 0}, at::kLong);
    const auto [entropy, common, of_pair, of_target] = sp_fast::mask_pair_sums(logits[0], masks[0], row);
    EXPECT(close(entropy, at::full({2}, 12 * std::log(2.f))));
    EXPECT(close(common, at::tensor({2.f, 6.f})) && close(of_pair, at::full({2}, 3.f)));
    EXPECT(close(of_target, at::tensor({4.f, 12.f})));
    // Each cell stands for four: of the cross-entropy 4 (p - g), of the overlap g, of the squares 1.
    const at::Tensor one = at::ones({2}), none = at::zeros({2});
    const auto gradient = [&](const at::Tensor& a, const at::Tensor& b, const at::Tensor& c) {
        return sp_fast::mask_pair_sums_backward(a, b, c, logits[0], masks[0], row)[1];
    };
    EXPECT(close(gradient(one, none, none), at::full({1, 3}, -2.f)));
    EXPECT(close(gradient(none, one, none), at::full({1, 3}, 1.f)));
    EXPECT(close(gradient(none, none, one), at::full({1, 3}, 1.f)));
    EXPECT(throws<c10::ValueError>([&] { sp_fast::mask_pair_sums(logits[0], masks[0], row + 1); }, "row"));
    EXPECT(throws<c10::ValueError>(
        [&] { sp_fast::mask_pair_sums_backward(one, none, at::ones({3}), logits[0], masks[0], row); },
        "grad_squares"));
}

void test_focal_loss() {
    const at::Tensor logits = at::zeros({1, 2, 1, 3});
    const at::Tensor labels = at::tensor({0, 1, -1, 2, 0, 0, 5, 5, 5, 5, 5, 5}, at::kLong).view({1, 2, 6});
    // Four cells have a label, 20 have none; sigmoid(0)^2 log 2 each.
    const float each = 0.25f * std::log(2.f);
    EXPECT(close(sp_fast::upsampled_focal_loss(logits, labels, 0.25),
                 at::scalar_tensor(each * (4 * 0.25f + 20 * 0.75f))));
    const at::Tensor grad = sp_fast::upsampled_focal_loss_backward(at::full({}, 2.f), logits, labels, 0.25);
    const float slope = 2 * 0.25f * (std::log(2.f) + 0.5f);
    EXPECT(std::abs(grad.sum().item<float>() - slope * (20 * 0.75f - 4 * 0.25f)) < 1e-4);
    EXPECT(throws<c10::ValueError>(
        [&] { sp_fast::upsampled_focal_loss(logits, labels.narrow(2, 0, 5), 0.25); }, "labels"));
}

void test_connected_parts() {
    // Rows of 5, from the lowest bit: 11000, 00011, 00100, 10001.
    const at::Tensor words = at::tensor({0b10001'00100'11000'00011}, at::kInt).view({1, 1});
    const auto [eight, number] = sp_fast::connected_parts(words, 4, 5, 3, 1, 8);
    EXPECT(
        at::equal(eight, at::tensor({0b00000'00100'11000'00000, 0b11, 1 << 15}, at::kInt).view({1, 3, 1})));
    EXPECT(number.item<int64_t>() == 3);
    const auto [four, of_four] = sp_fast::connected_parts(words, 4, 5, 3, 2, 4);
    EXPECT(at::equal(four, at::tensor({0b11, 0b11 << 8, 0}, at::kInt).view({1, 3, 1})));
    EXPECT(of_four.item<int64_t>() == 2);
    // Bits past the last cell are not read.
    const auto [whole, one] = sp_fast::connected_parts(at::full({1, 2}, -1, at::kInt), 5, 7, 2, 1, 4);
    EXPECT(at::equal(whole, at::tensor({-1, 0b111, 0, 0}, at::kInt).view({1, 2, 2})));
    EXPECT(one.item<int64_t>() == 1);
    for (const auto& [height, width] : {std::pair{0, 7}, std::pair{7, 0}}) {
        const auto [none, zero] =
            sp_fast::connected_parts(at::zeros({2, 0}, at::kInt), height, width, 2, 1, 8);
        EXPECT(none.numel() == 0 && at::equal(zero, at::zeros({2}, at::kLong)));
    }
    EXPECT(throws<c10::ValueError>([&] { sp_fast::connected_parts(words, 4, 5, 3, 1, 6); }, "connectivity"));
    EXPECT(throws<c10::ValueError>([&] { sp_fast::connected_parts(words, 4, 5, 0, 1, 8); }, "max_parts"));
    EXPECT(throws<c10::ValueError>([&] { sp_fast::connected_parts(words, 7, 5, 3, 1, 8); }, "words"));
}

void test_matrix_nms() {
    const at::Tensor score = at::tensor({0.5f, 0.9f, 0.8f, 1.0f}).view({1, 4});
    // Order 3, 1, 2, 0. IoU: 3-1 1/3, 3-0 1/4, 1-0 3/4.
    const float to_first = 1.f - 1.f / 3;
    const at::Tensor linear =
        at::tensor({0.5f * (1 - 0.75f) / to_first, 0.9f * to_first, 0.8f, 1.0f}).view({1, 4});
    EXPECT(close(sp_fast::matrix_nms(four_masks(), score, false, 2.0), linear));
    const at::Tensor same = at::full({1, 3, 1}, 7, at::kInt);
    EXPECT(close(sp_fast::matrix_nms(same, at::tensor({3.f, 2.f, 1.f}).view({1, 3}), false, 2.0),
                 at::tensor({3.f, 0.f, 0.f}).view({1, 3})));
    EXPECT(sp_fast::matrix_nms(at::zeros({0, 5, 1}, at::kInt), at::zeros({0, 5}), true, 2.0).numel() == 0);
}

void test_saliency() {
    const at::Tensor features = at::arange(35, at::kFloat).view({1, 1, 5, 7});
    const at::Tensor seeds = sp_fast::pool_seeds(features, {1, 1, 2, 3}, std::nullopt);
    EXPECT(seeds.size(1) == 7);
    EXPECT(std::abs(seeds[0][0][0].item<float>() - 17) < 1e-5);
    EXPECT(std::abs(seeds[0][1][0].item<float>() - 8) < 1e-5);  // rows 0-2, columns 0-2

    // Half of the cells, those from 17 to 34; the second word ends after 3 bits.
    const auto [words, score] =
        sp_fast::seed_saliency(features, at::ones({1, 1, 1}), std::nullopt, false, 0.5);
    EXPECT(words[0][0][0].item<int32_t>() == static_cast<int32_t>(0xFFFE0000));
    EXPECT(words[0][0][1].item<int32_t>() == 0b111);
    EXPECT(std::abs(score[0][0].item<float>() - 0.75) < 1e-5);

    // Padding (here NaN) is ignored.
    at::Tensor padded = at::full({1, 1, 6, 9}, kNaN);
    padded.narrow(2, 0, 5).narrow(3, 0, 7).copy_(features);
    const at::Tensor valid = at::tensor({5, 7}, at::kLong).view({1, 2});
    EXPECT(close(sp_fast::pool_seeds(padded, {1, 1, 2, 3}, valid), seeds));
    const auto result = sp_fast::seed_saliency(padded, at::ones({1, 1, 1}), valid, false, 0.5);
    EXPECT(close(std::get<1>(result), score));

    for (const float value : {0.f, kNaN, kInf}) {
        const auto none =
            sp_fast::seed_saliency(features, at::full({1, 1, 1}, value), std::nullopt, true, 0.0);
        EXPECT(std::get<0>(none).abs().sum().item<int64_t>() == 0 && std::get<1>(none).item<float>() == 0);
    }
    EXPECT(throws<c10::ValueError>(
        [&] { sp_fast::pool_seeds(padded, {1, 1}, at::tensor({7, 7}, at::kLong).view({1, 2})); }, "valid"));
    EXPECT(throws<c10::ValueError>([&] { sp_fast::pool_seeds(padded, {1, 0}, std::nullopt); }, "grid"));
}

void test_roi_average_pool() {
    const at::Tensor features = at::arange(19 * 37, at::kFloat).view({1, 1, 19, 37});
    const at::Tensor boxes = at::tensor({0.f, 0.f, 37.f, 19.f,     //
                                         1.2f, 2.f, 1.4f, 3.f,     //
                                         -kInf, kNaN, kInf, -5.f,  //
                                         90.f, 90.f, 99.f, 99.f})
                                 .view({1, 4, 4});
    const at::Tensor expected = at::tensor({351.f, 75.f, 18.f, 702.f}).view({1, 4, 1});
    EXPECT(close(sp_fast::roi_average_pool(features, boxes, std::nullopt), expected));
    const at::Tensor count = at::tensor({1}, at::kLong);
    const at::Tensor grad = at::ones({1, 4, 1});
    EXPECT(close(sp_fast::roi_average_pool_backward(grad, boxes, count, 19, 37, false),
                 at::full({1, 1, 19, 37}, 1.0 / (19 * 37))));
    EXPECT(throws<c10::ValueError>(
        [&] { sp_fast::roi_average_pool(features, boxes, at::tensor({5}, at::kLong)); }, "count"));

    at::Tensor leaf = features.clone().requires_grad_();
    const at::Tensor pooled = sp_fast::dispatched::roi_average_pool(leaf, boxes, std::nullopt);
    const auto grads = torch::autograd::grad({pooled.sum()}, {leaf});
    EXPECT(std::abs(grads[0].sum().item<float>() - 4) < 1e-4);
}

void test_deformable_attention() {
    const at::Tensor value = at::arange(6, at::kFloat).view({1, 6, 1, 1});  // maps of 1 x 4 and 2 x 1 cells
    const at::Tensor sizes = at::tensor({1, 4, 2, 1}, at::kLong).view({2, 2});
    const at::Tensor locations =
        at::tensor({0.5f, 0.5f, 0.5f, 0.5f, kNaN, 0.5f, 0.5f, 1.25f}).view({1, 2, 1, 2, 1, 2});
    const at::Tensor weights = at::tensor({2.f, 10.f, 1.f, 4.f}).view({1, 2, 1, 2, 1});
    // 2 * 1.5 + 10 * 4.5; the second query reads nothing at the first level, and beyond the last cell.
    EXPECT(close(sp_fast::deformable_attention(value, sizes, locations, weights),
                 at::tensor({48.f, 0.f}).view({1, 2, 1})));
    const auto [grad_value, grad_locations, grad_weights] =
        sp_fast::deformable_attention_backward(at::ones({1, 2, 1}), value, sizes, locations, weights);
    EXPECT(close(grad_value.flatten(), at::tensor({0.f, 1.f, 1.f, 0.f, 5.f, 5.f})));
    EXPECT(close(grad_weights.flatten(), at::tensor({1.5f, 4.5f, 0.f, 0.f})));
    // On the line through the centres, the gradient is the one to the right or below: here, out of the map.
    EXPECT(close(grad_locations.flatten(), at::tensor({8.f, -3.f, -45.f, 20.f, 0.f, 0.f, 0.f, 0.f})));
    EXPECT(throws<c10::ValueError>(
        [&] { sp_fast::deformable_attention(value, sizes + 1, locations, weights); }, "sizes"));
}

void test_match_prompts() {
    const at::Tensor kernels = at::tensor({1.f, 0.f, 0.f, 2.f, 1.f, 1.f}).view({3, 2});
    const at::Tensor prompts = at::tensor({kNaN, 1.f, 0.f, 3.f, 0.f, 3.f, 5.f, 0.f}).view({1, 4, 2});
    const auto [decorated, index] = sp_fast::match_prompts(kernels, prompts, std::nullopt);
    EXPECT(at::equal(index, at::tensor({3, 1, 1}, at::kLong).view({1, 3})));
    EXPECT(close(decorated, at::tensor({6.f, 0.f, 0.f, 5.f, 1.f, 4.f}).view({1, 3, 2})));
    const at::Tensor one = at::tensor({1}, at::kLong);
    EXPECT(at::equal(std::get<1>(sp_fast::match_prompts(kernels, prompts, one)),
                     at::full({1, 3}, -1, at::kLong)));
}

void test_kernel_supervision_loss() {
    const at::Tensor kernels = at::tensor({1.f, 0.f, kNaN, 0.f, 0.f, 0.f}).view({1, 1, 3, 2});
    const at::Tensor targets = at::tensor({3.f, 0.f, 0.f, 1.f, 1.f, 1.f, kNaN, 1.f}).view({1, 4, 2});
    const at::Tensor index = at::tensor({0, 0, 2, -1}, at::kLong).view({1, 1, 4});
    EXPECT(close(sp_fast::kernel_supervision_loss(kernels, targets, index, false), at::scalar_tensor(2.f)));
    EXPECT(
        close(sp_fast::kernel_supervision_loss(kernels, targets, index, true), at::scalar_tensor(2.f / 3)));
    const auto [grad_kernels, grad_targets] =
        sp_fast::kernel_supervision_loss_backward(at::ones({}), kernels, targets, index, false);
    EXPECT(close(grad_kernels[0][0][0], at::tensor({0.f, -1.f})));
    EXPECT(grad_kernels[0][0][1].abs().sum().item<float>() == 0);
    EXPECT(close(grad_targets[0][1], at::tensor({-1.f, 0.f})));
    EXPECT(grad_targets[0][3].abs().sum().item<float>() == 0);
    EXPECT(throws<c10::ValueError>(
        [&] { sp_fast::kernel_supervision_loss(kernels, targets, index + 1, true); }, "index"));
}

}  // namespace

int main() {
    test_mask_nms();
    test_packed_masks();
    test_take_proposals();
    test_runs();
    test_mask_sums();
    test_focal_loss();
    test_connected_parts();
    test_matrix_nms();
    test_saliency();
    test_roi_average_pool();
    test_deformable_attention();
    test_match_prompts();
    test_kernel_supervision_loss();
    std::printf(failures == 0 ? "all passed\n" : "%d failed\n", failures);
    return failures == 0 ? 0 : 1;
}
